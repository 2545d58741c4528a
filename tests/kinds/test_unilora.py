"""UniLoRA against rationals, and in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX
from one_kind import (
    IN,
    OUT,
    Numbers,
    base_of,
    every_dtype,
    normal,
    own,
    times,
    try_chain,
    try_commands,
    try_merges,
    varied,
    vector,
    write,
)
from rationals import Matrix
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError

RANK, COUNT = 3, 20


def one_layer(folder: Path, dtype: torch.dtype = torch.float32, make: Numbers = normal, **fields: Any) -> Path:
    tensors = {"base_model.unilora_theta_d": make(COUNT, dtype=dtype)}
    for side, shape in (("A", (RANK, IN)), ("B", (OUT, RANK))):
        tensors[f"l.unilora_indices_{side}"] = torch.randint(0, COUNT, shape)
        tensors[f"l.unilora_scales_{side}"] = make(*shape, dtype=dtype)
    return write(folder, tensors, **{"peft_type": "UNILORA", "r": RANK, "save_indices": True, **fields})


def change_of(adapter: Path) -> Matrix:
    found = own(adapter)
    theta, sides = vector(found["unilora_theta_d"]), []
    for side in "BA":
        places, scales = found[f"unilora_indices_{side}"], found[f"unilora_scales_{side}"]
        rows = zip(places.tolist(), map(vector, scales), strict=True)
        sides.append([[theta[at] * scale for at, scale in zip(*row, strict=True)] for row in rows])
    return times(*sides)


@every_dtype
def test_every_element_is_the_rounding_of_the_formula(tmp_path: Path, dtype: torch.dtype, factors: torch.dtype) -> None:
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors, make=varied)
    try_merges(tmp_path, base, adapter, change_of(adapter))
    try_chain(tmp_path, base, adapter, change_of(adapter))


def test_every_command(tmp_path: Path) -> None:
    try_commands(tmp_path, base_of(tmp_path / "base"), one_layer(tmp_path / "a"), "unilora")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    for number, (fields, message) in enumerate(
        [({"save_indices": False}, "save_indices = false"), ({"r": 4}, "rank 4"), ({"quite_new": 1}, "quite_new")]
    ):
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [one_layer(tmp_path / f"{number}", **fields)], tmp_path / "out")
    path = one_layer(tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, tensor in (
        ("unilora_indices_A", torch.full((RANK, IN), COUNT)),
        ("unilora_indices_B", torch.full((OUT, RANK), -1)),
        ("unilora_scales_A", torch.ones(RANK, IN + 1)),
        ("unilora_scales_B", torch.ones(OUT + 1, RANK)),
    ):
        save_file({**tensors, f"{PREFIX}l.{key}": tensor}, path)
        with pytest.raises(InputError):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()
