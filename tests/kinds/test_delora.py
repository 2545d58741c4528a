"""DeLoRA against decimals, and in every command."""

from __future__ import annotations

import decimal
from decimal import Decimal
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
    scaled,
    times,
    try_chain,
    try_commands,
    try_joined_is_refused,
    try_merges,
    try_part,
    varied,
    vector,
    write,
)
from rationals import Matrix, matrix
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError

RANK = 3


def one_layer(
    folder: Path, dtype: torch.dtype = torch.float32, layer: str = "l", make: Numbers = normal, **fields: Any
) -> Path:
    tensors = {
        "delora_A": make(RANK, IN, dtype=dtype),
        "delora_B": make(OUT, RANK, dtype=dtype),
        "delora_lambda": torch.tensor([13.0]).to(dtype) / 7,
        "delora_w_norm": abs(make(IN, dtype=dtype)),
    }
    tensors["delora_A"][0] *= 1e-6  # shorter than the least length
    tensors["delora_B"][:, 1] = 0
    named = {f"{layer}.{role}": tensor for role, tensor in tensors.items()}
    return write(folder, named, **{"peft_type": "DELORA", "r": RANK, "delora_lambda": 15, **fields})


def length(numbers: list[Fraction]) -> Fraction:
    with decimal.localcontext(prec=120):
        square = sum((x * x for x in numbers), Fraction())
        return Fraction((Decimal(square.numerator) / Decimal(square.denominator)).sqrt())


def change_of(adapter: Path, layer: str = "l") -> Matrix:
    """The norms to 120 digits."""
    found = own(adapter, layer)
    a, b, least = matrix(found["delora_A"]), matrix(found["delora_B"].T), Fraction(1e-4)
    strength = vector(found["delora_lambda"])[0] / RANK
    diagonal = [strength / (max(length(x), least) * max(length(y), least)) for x, y in zip(a, b, strict=True)]
    inputs = [[x * n for x, n in zip(row, vector(found["delora_w_norm"]), strict=True)] for row in a]
    return times(matrix(found["delora_B"]), scaled(diagonal, inputs))


@every_dtype
def test_every_element_is_the_rounding_of_the_formula(tmp_path: Path, dtype: torch.dtype, factors: torch.dtype) -> None:
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors, make=varied)
    try_merges(tmp_path, base, adapter, change_of(adapter))
    try_chain(tmp_path, base, adapter, change_of(adapter))


def test_on_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    adapter = one_layer(tmp_path / "a", layer=PART)
    try_part(tmp_path, adapter, change_of(adapter, PART))


def test_projections_that_are_stored_apart_are_refused(tmp_path: Path) -> None:
    """The norms are those of all rows."""
    try_joined_is_refused(tmp_path, one_layer(tmp_path / "a", layer=JOINED), "delora")


def test_every_command(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a")
    try_commands(tmp_path, base, adapter, "delora")


def test_truncate_makes_a_lora_of_it(tmp_path: Path) -> None:
    """At the rank that it has: the change itself, but for its rounding."""
    base, adapter = base_of(tmp_path / "base", torch.float32), one_layer(tmp_path / "a")
    adaptertool.truncate(adapter, tmp_path / "lora", rank=RANK)
    report = adaptertool.inspect(tmp_path / "lora", base)
    assert report.fits and report.adapter is not None and report.adapter.modules[0].kind == "lora"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    for number, (fields, message) in enumerate([({"r": 4}, "rank 4"), ({"quite_new": 1}, "quite_new")]):
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [one_layer(tmp_path / f"{number}", **fields)], tmp_path / "out")
    path = one_layer(tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, tensor in (
        ("delora_A", torch.ones(RANK, IN + 1)),
        ("delora_B", torch.ones(OUT + 1, RANK)),
        ("delora_lambda", torch.ones(RANK)),
        ("delora_w_norm", torch.ones(OUT)),
        ("delora_lambda", torch.tensor([torch.nan])),
        ("delora_lambda", torch.tensor([torch.inf])),
        ("delora_B", torch.full((OUT, RANK), torch.nan)),
        ("delora_A", torch.full((RANK, IN), torch.inf)),
    ):
        save_file({**tensors, f"{PREFIX}l.{key}": tensor}, path)
        with pytest.raises(InputError):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    for key in tensors:
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, path)
        with pytest.raises(InputError, match="has no delora"):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()
