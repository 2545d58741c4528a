"""VB-LoRA against decimals, and in every command."""

from __future__ import annotations

import copy
import decimal
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load
from layers import make_base, peft_merge
from one_kind import (
    IN,
    JOINED,
    OUT,
    PART,
    Numbers,
    base_of,
    every_dtype,
    normal,
    own,
    times,
    try_chain,
    try_commands,
    try_joined,
    try_leading_part,
    try_merges,
    try_part,
    varied,
    write,
)
from peft import VBLoRAConfig, get_peft_model
from rationals import Matrix, matrix
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, UnsupportedError

RANK, LENGTH, COUNT, MOST = 3, 2, 200, 3
SIDES = {"A": (RANK, IN // LENGTH), "B": (OUT // LENGTH, RANK)}


def one_layer(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    layer: str = "l",
    make: Numbers = normal,
    saved: bool = False,
    **fields: Any,
) -> Path:
    tensors = {"base_model.vblora_vector_bank": make(COUNT, LENGTH, dtype=dtype)}
    for side, shape in SIDES.items():
        logits = torch.randn(*shape, COUNT).clamp(max=3).to(dtype)
        places = torch.arange(7, 7 + 11 * MOST, 11)  # none are equal where the largest end
        logits[..., places] = (torch.tensor([6.0, 4.0, 5.0]) + torch.rand(*shape, MOST) / 2).to(dtype)
        if not saved:
            tensors[f"{layer}.vblora_logits_{side}"] = logits
            continue
        largest, places = logits.topk(MOST)
        tensors[f"{layer}.vblora_logits_{side}_topk_indices"] = places.to(torch.uint8)
        tensors[f"{layer}.vblora_logits_{side}_topk_weights"] = (largest.double().softmax(-1)[..., :-1] * 0.99).to(
            dtype
        )
    said = {"peft_type": "VBLORA", "r": RANK, "topk": MOST, "num_vectors": COUNT, "vector_length": LENGTH}
    return write(folder, tensors, **{**said, "save_only_topk_weights": saved, **fields})


def shares_of(logits: list[float]) -> list[Fraction]:
    """Their softmax, to 120 digits."""
    with decimal.localcontext(prec=120):
        powers = [Decimal(logit).exp() for logit in logits]
        return [Fraction(power / sum(powers)) for power in powers]


def pieces(found: dict[str, torch.Tensor], side: str) -> list[list[list[Fraction]]]:
    bank, key = matrix(found["vblora_vector_bank"]), f"vblora_logits_{side}"
    result = []
    for x in range(SIDES[side][0]):
        result.append([])
        for y in range(SIDES[side][1]):
            if key in found:
                largest, places = found[key][x, y].topk(MOST)
                shares = shares_of(largest.tolist())
            else:
                places = found[f"{key}_topk_indices"][x, y]
                shares = [Fraction(share) for share in found[f"{key}_topk_weights"][x, y].tolist()]
                shares.append(1 - sum(shares))
            chosen = [bank[place] for place in places.tolist()]
            result[-1].append(
                [sum((p * v[n] for p, v in zip(shares, chosen, strict=True)), Fraction()) for n in range(LENGTH)]
            )
    return result


def change_of(adapter: Path, layer: str = "l") -> Matrix:
    found = own(adapter, layer)
    a = [[number for piece in row for number in piece] for row in pieces(found, "A")]
    b = [[piece[n] for piece in tile] for tile in pieces(found, "B") for n in range(LENGTH)]
    return times(b, a)


@pytest.mark.long("saved")
@every_dtype
@pytest.mark.parametrize("saved", [False, True])
def test_every_element_is_the_rounding_of_the_formula(
    tmp_path: Path, dtype: torch.dtype, factors: torch.dtype, saved: bool
) -> None:
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors, make=varied, saved=saved)
    change = change_of(adapter)
    try_merges(tmp_path, base, adapter, change)
    try_chain(tmp_path, base, adapter, change)


def test_shares_that_peft_saves(tmp_path: Path) -> None:
    """PEFT makes logits of them in float32 when it loads them."""
    zoo, base = make_base(tmp_path / "base", torch.float32)
    config = VBLoRAConfig(
        r=3, num_vectors=300, vector_length=2, topk=3, save_only_topk_weights=True, target_modules=["linear", "turned"]
    )
    get_peft_model(copy.deepcopy(zoo), config).save_pretrained(tmp_path / "a")
    adaptertool.merge(base, [tmp_path / "a"], tmp_path / "out")
    exact = peft_merge(zoo, tmp_path / "a")
    for name, tensor in load(tmp_path / "out").items():
        assert torch.allclose(tensor.double(), exact[name], rtol=1e-6, atol=1e-7)


def test_on_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    adapter = one_layer(tmp_path / "a", layer=PART)
    try_part(tmp_path, adapter, change_of(adapter, PART))


def test_projections_that_are_stored_apart(tmp_path: Path) -> None:
    """By rows of the product that it comes down to."""
    adapter = one_layer(tmp_path / "a", layer=JOINED)
    try_joined(tmp_path, adapter, change_of(adapter, layer=JOINED))


def test_every_command(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a", saved=True)
    try_commands(tmp_path, base, adapter, "vblora")
    try_leading_part(tmp_path, base, adapter, "vblora")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    for number, (fields, message) in enumerate(
        [
            ({"topk": 0}, "topk is 0"),
            ({"topk": COUNT + 1}, "topk is 201"),
            ({"topk": 2, "saved": True}, "topk is 2"),
            ({"topk": None}, "topk"),
            ({"quite_new": 1}, "quite_new"),
        ]
    ):
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [one_layer(tmp_path / f"{number}", **fields)], tmp_path / "out")
    plain, saved = ("vblora_logits_A", "vblora_logits_A_topk_weights")
    for number, (key, tensor) in enumerate(
        [
            (plain, torch.ones(*SIDES["A"], COUNT + 1)),
            (plain, torch.ones(RANK + 1, IN // LENGTH, COUNT)),
            (plain, torch.zeros(*SIDES["A"], COUNT)),  # all are equal
            (plain, torch.full((*SIDES["A"], COUNT), torch.nan)),
            (saved, torch.full((*SIDES["A"], MOST - 1), 0.6)),  # more than 1 together
            (saved, torch.full((*SIDES["A"], MOST - 1), -0.1)),
            (saved, torch.ones(*SIDES["A"], MOST)),
            ("vblora_logits_A_topk_indices", torch.full((*SIDES["A"], MOST), COUNT, dtype=torch.int16)),
            ("vblora_logits_A_topk_indices", torch.full((*SIDES["A"], MOST), -1, dtype=torch.int16)),
        ]
    ):
        path = one_layer(tmp_path / f"tensor{number}", saved=key != plain) / "adapter_model.safetensors"
        save_file({**load_file(path), f"{PREFIX}l.{key}": tensor}, path)
        with pytest.raises(InputError):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    both = one_layer(tmp_path / "both", saved=True) / "adapter_model.safetensors"
    save_file({**load_file(both), f"{PREFIX}l.vblora_logits_A": torch.ones(*SIDES["A"], COUNT)}, both)
    with pytest.raises((InputError, UnsupportedError)):
        adaptertool.merge(base, [both.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()
