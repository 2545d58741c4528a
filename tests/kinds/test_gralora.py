"""GraLoRA against rationals, and in every command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX
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
    together,
    try_chain,
    try_commands,
    try_joined,
    try_leading_part,
    try_merges,
    try_part,
    varied,
    write,
)
from rationals import Matrix, delta
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

K, RANK, ALPHA = 2, 4, 3


def one_layer(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    layer: str = "l",
    make: Numbers = normal,
    hybrid: int = 0,
    **fields: Any,
) -> Path:
    tensors = {
        f"{layer}.gralora_A": make(K, IN // K, RANK, dtype=dtype),
        f"{layer}.gralora_B": make(K, RANK, OUT // K, dtype=dtype),
    }
    if hybrid:
        tensors |= {
            f"{layer}.gralora_A_general.weight": make(hybrid, IN, dtype=dtype),
            f"{layer}.gralora_B_general.weight": make(OUT, hybrid, dtype=dtype),
        }
    said = {"peft_type": "GRALORA", "r": RANK, "alpha": ALPHA, "gralora_k": K, "hybrid_r": hybrid}
    return write(folder, tensors, **{**said, **fields})


def change_of(adapter: Path, layer: str = "l", hybrid: int = 0) -> Matrix:
    """Element by element, from the definition of the blocks."""
    found = own(adapter, layer)
    a, b, inner = found["gralora_A"].double(), found["gralora_B"].double(), RANK // K
    scale = Fraction(ALPHA / (RANK + hybrid))
    change = [[Fraction() for _ in range(IN)] for _ in range(OUT)]
    for o in range(OUT):
        for i in range(IN):
            (j, row), (n, column) = divmod(o, OUT // K), divmod(i, IN // K)
            for t in range(inner):
                x, y = a[n, column, j * inner + t].item(), b[j, n * inner + t, row].item()
                change[o][i] += Fraction(x) * Fraction(y) * scale
    if hybrid:
        more = delta(found["gralora_A_general.weight"], found["gralora_B_general.weight"])
        change = together(change, more, scale)
    return change


@pytest.mark.long("hybrid")
@every_dtype
@pytest.mark.parametrize("hybrid", [0, 2])
def test_every_element_is_the_rounding_of_the_formula(
    tmp_path: Path, dtype: torch.dtype, factors: torch.dtype, hybrid: int
) -> None:
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors, make=varied, hybrid=hybrid)
    try_merges(tmp_path, base, adapter, change_of(adapter, hybrid=hybrid))
    try_chain(tmp_path, base, adapter, change_of(adapter, hybrid=hybrid))


def test_on_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    adapter = one_layer(tmp_path / "a", layer=PART, hybrid=1)
    try_part(tmp_path, adapter, change_of(adapter, PART, hybrid=1))


def test_projections_that_are_stored_apart(tmp_path: Path) -> None:
    """By rows of the product that it comes down to."""
    adapter = one_layer(tmp_path / "a", layer=JOINED)
    try_joined(tmp_path, adapter, change_of(adapter, layer=JOINED))


def test_every_command(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a")
    try_commands(tmp_path, base, adapter, "gralora")
    try_leading_part(tmp_path, base, adapter, "gralora")


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    for number, (more, message) in enumerate(
        [
            ({"r": 2}, "r and hybrid_r are 2 and 0"),
            ({"hybrid_r": 2}, "r and hybrid_r are 4 and 2"),
            ({"hybrid": 2, "hybrid_r": 0}, "r and hybrid_r are 4 and 0"),
            ({"hybrid_r": "2"}, "the scale of GRALORA"),
            ({"quite_new": 1}, "quite_new"),
        ]
    ):
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [one_layer(tmp_path / f"{number}", **more)], tmp_path / "out")
    path = one_layer(tmp_path / "a", hybrid=2) / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, shape in (
        ("gralora_A", (K, IN // K + 1, RANK)),
        ("gralora_A", (K + 1, IN // K, RANK)),
        ("gralora_A", (K, IN // K)),
        ("gralora_B", (K, RANK + 1, OUT // K)),
        ("gralora_B_general.weight", (OUT, 3)),
    ):
        save_file({**tensors, f"{PREFIX}l.{key}": torch.ones(shape)}, path)
        with pytest.raises((MismatchError, UnsupportedError)):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    for key in ("gralora_B", "gralora_A_general.weight", "gralora_B_general.weight"):
        save_file({name: tensor for name, tensor in tensors.items() if not name.endswith(f".{key}")}, path)
        with pytest.raises(InputError):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()
