"""PVeRA against rationals, and in every command."""

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
    scaled,
    times,
    try_chain,
    try_commands,
    try_merges,
    varied,
    vector,
    write,
)
from rationals import Matrix, matrix
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError

RANK = 3


def one_layer(folder: Path, dtype: torch.dtype = torch.float32, make: Numbers = normal, **fields: Any) -> Path:
    tensors = {
        "l.pvera_lambda_b": make(OUT, dtype=dtype),
        "l.pvera_lambda_d": make(2 * RANK, dtype=dtype),
        "base_model.pvera_A": make(2 * RANK, IN + 2, dtype=dtype),
        "base_model.pvera_B": make(OUT + 1, RANK, dtype=dtype),
    }
    return write(folder, tensors, **{"peft_type": "PVERA", "r": RANK, **fields})


def change_of(adapter: Path) -> Matrix:
    found = own(adapter)
    left = scaled(vector(found["pvera_lambda_b"]), matrix(found["pvera_B"][:OUT]))
    return times(left, scaled(vector(found["pvera_lambda_d"][:RANK]), matrix(found["pvera_A"][:RANK, :IN])))


@every_dtype
def test_every_element_is_the_rounding_of_the_formula(tmp_path: Path, dtype: torch.dtype, factors: torch.dtype) -> None:
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors, make=varied)
    try_merges(tmp_path, base, adapter, change_of(adapter))
    try_chain(tmp_path, base, adapter, change_of(adapter))


def test_every_command(tmp_path: Path) -> None:
    try_commands(tmp_path, base_of(tmp_path / "base"), one_layer(tmp_path / "a"), "pvera")


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    for number, fields in enumerate([{"sample_at_inference": True}, {"save_projection": False}, {"quite_new": 1}]):
        with pytest.raises(InputError, match=next(iter(fields))):
            adaptertool.merge(base, [one_layer(tmp_path / f"{number}", **fields)], tmp_path / "out")
    path = one_layer(tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, shape in (
        ("base_model.pvera_A", (2 * RANK + 1, IN)),
        ("base_model.pvera_A", (RANK, IN)),
        (f"{PREFIX}l.pvera_lambda_d", (RANK,)),
    ):
        save_file({**tensors, key: torch.ones(shape)}, path)
        with pytest.raises(InputError):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()
