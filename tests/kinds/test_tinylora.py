"""TinyLoRA against rationals, and in every command."""

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
from rationals import Matrix, matrix
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, UnsupportedError

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
    save_file({**tensors, "base_model.tinylora_v.1": torch.ones(COUNT)}, path)
    with pytest.raises(UnsupportedError, match="which of several vectors belongs to which module"):
        adaptertool.merge(base, [path.parent], tmp_path / "out")
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
