"""TinyLoRA against rationals, and in every command."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, write_checkpoint
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
    together,
    try_chain,
    try_commands,
    try_joined,
    try_merges,
    try_part,
    varied,
    vector,
    write,
)
from oracle import half_ulp_excess
from rationals import Matrix, matrix
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError

RANK, COUNT = 2, 3


def one_layer(
    folder: Path, dtype: torch.dtype = torch.float32, layer: str = "l", make: Numbers = normal, **fields: Any
) -> Path:
    tensors = {
        f"{layer}.tinylora_A": make(RANK, IN, dtype=dtype),
        f"{layer}.tinylora_B": make(OUT, RANK, dtype=dtype),
        f"{layer}.tinylora_P": make(COUNT, RANK, RANK, dtype=dtype),
        "base_model.tinylora_v.0": make(COUNT, dtype=dtype),
    }
    return write(folder, tensors, **{"peft_type": "TINYLORA", "r": RANK, "u": COUNT, "weight_tying": 1.0, **fields})


def change_of(adapter: Path, layer: str = "l") -> Matrix:
    found = own(adapter, layer)
    middle = [[Fraction()] * RANK for _ in range(RANK)]
    for number, part in zip(vector(found["tinylora_v.0"]), found["tinylora_P"], strict=True):
        middle = together(middle, matrix(part), number)
    return times(times(matrix(found["tinylora_B"]), middle), matrix(found["tinylora_A"]))


@every_dtype
def test_every_element_is_the_rounding_of_the_formula(tmp_path: Path, dtype: torch.dtype, factors: torch.dtype) -> None:
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors, make=varied)
    try_merges(tmp_path, base, adapter, change_of(adapter))
    try_chain(tmp_path, base, adapter, change_of(adapter))


def test_on_parts_of_fused_projections_and_on_those_stored_apart(tmp_path: Path) -> None:
    adapter = one_layer(tmp_path / "a", layer=PART)
    try_part(tmp_path, adapter, change_of(adapter, PART))
    adapter = one_layer(tmp_path / "b", layer=JOINED)
    try_joined(tmp_path, adapter, change_of(adapter, JOINED))


def test_every_command(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a")
    try_commands(tmp_path, base, adapter, "tinylora")


def test_what_cannot_be_known_is_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    for number, (fields, message) in enumerate(
        [({"save_projection": False}, "save_projection = false"), ({"quite_new": 1}, "quite_new")]
    ):
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [one_layer(tmp_path / f"{number}", **fields)], tmp_path / "out")
    path = one_layer(tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, shape in (
        (f"{PREFIX}l.tinylora_A", (RANK, IN + 1)),
        (f"{PREFIX}l.tinylora_B", (OUT, RANK + 1)),
        (f"{PREFIX}l.tinylora_P", (COUNT, RANK)),
        ("base_model.tinylora_v.0", (COUNT + 1,)),
    ):
        save_file({**tensors, key: torch.ones(shape)}, path)
        with pytest.raises(InputError):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    for key in tensors:
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, path)
        with pytest.raises(InputError, match="has no tinylora"):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def several(folder: Path, tying: float = 0.0, count: int = 3, seed: int = 7) -> tuple[Path, Path]:
    """A base and an adapter of so many square modules m2, m1, ..., in this order, with the P that torch draws."""
    groups = max(1, round(count * (1 - tying)))
    tensors: dict[str, torch.Tensor] = {f"base_model.tinylora_v.{i}": torch.randn(COUNT) for i in range(groups)}
    for place in range(count):
        own = {"A": torch.randn(RANK, IN), "B": torch.randn(IN, RANK)}
        own["P"] = torch.normal(
            0.0, RANK**-0.5, (COUNT, RANK, RANK), generator=torch.Generator().manual_seed(seed + place)
        )
        tensors |= {f"m{count - 1 - place}.tinylora_{role}": tensor for role, tensor in own.items()}
    base = write_checkpoint(folder / "base", {f"m{i}.weight": torch.randn(IN, IN) for i in range(count)})
    fields = {"peft_type": "TINYLORA", "r": RANK, "u": COUNT, "weight_tying": tying, "projection_seed": seed}
    return base, write(folder / "a", tensors, **fields)


@pytest.mark.parametrize(("tying", "groups"), [(0.0, [0, 1, 2, 3, 4]), (0.5, [0, 0, 1, 1, 1]), (0.9, [0] * 5)])
def test_which_vector_is_whose_is_told_by_what_its_seed_draws(tmp_path: Path, tying: float, groups: list[int]) -> None:
    """Two of five modules make a group, and the last has what is left."""
    base, adapter = several(tmp_path, tying, 5)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    found, before, made = (load(path) for path in (adapter, base, tmp_path / "out"))
    for place, group in enumerate(groups):
        a, b, p = (found[f"{PREFIX}m{4 - place}.tinylora_{role}"].double() for role in "ABP")
        v = found[f"base_model.tinylora_v.{group}"].double()
        exact = before[f"m{4 - place}.weight"].double() + b @ torch.einsum("i,ijk->jk", v, p) @ a
        assert half_ulp_excess(made[f"m{4 - place}.weight"], exact).max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "is not what projection_seed = 8 makes of one of 3 modules"),
        ({"tying": 0.5}, "weight_tying makes 2 vectors of 3 modules, and there are 3"),
        ({"field": ("projection_seed", "7")}, "weight_tying and projection_seed must be numbers"),
        ({"without": "base_model.tinylora_v.1"}, "numbered from 0 on"),
        ({"base_model.tinylora_v.x": torch.ones(COUNT)}, "numbered from 0 on"),
        ({"base_model.tinylora_v.3": torch.ones(COUNT + 1)}, "numbered from 0 on"),
        ({"base_model.tinylora_v.2": torch.ones(COUNT, dtype=torch.int32)}, "of one size and dtype"),
        ({f"{PREFIX}m0.tinylora_P": torch.zeros(COUNT, RANK, RANK)}, "is not what projection_seed"),
    ],
)
def test_what_does_not_tell_whose_a_vector_is_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    base, adapter = several(tmp_path)
    path, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    fields = json.loads(config.read_text())
    names = {"seed": "projection_seed", "tying": "weight_tying"}
    fields |= {names[name]: value for name, value in change.items() if name in names}
    fields |= dict([change["field"]]) if "field" in change else {}
    config.write_text(json.dumps(fields))
    tensors = {**load_file(path), **{key: value for key, value in change.items() if key.startswith("base_model")}}
    save_file({key: value for key, value in tensors.items() if key != change.get("without")}, path)
    with pytest.raises(InputError, match=message):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    assert not (tmp_path / "out").exists()
