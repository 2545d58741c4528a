"""HRA, and the right product that it is, against rationals, through every command."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, write_checkpoint
from one_kind import Formula, mixed, require_commands, write
from rationals import EVERY, NARROW, matrix, require
from skews import reflections, times

import adaptertool
from adaptertool.arithmetic import blocks, correct_rounding, requirements
from adaptertool.errors import AdapterToolError, InputError, MismatchError, UnsupportedError
from adaptertool.numerics.ops import DIGITS, DOUBLES

OUT, COLUMNS, RANK = 5, 12, 3


def fields(**more: Any) -> dict[str, Any]:
    return {"peft_type": "HRA", "r": RANK, "apply_GS": False, "init_weights": True, **more}


def formula_of(u: torch.Tensor, *, orthogonal: bool = False) -> Formula:
    turn = reflections(u, orthogonal=orthogonal)
    return lambda w: times(np.array(w), turn).tolist()


@pytest.mark.long("orthogonal")
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("orthogonal", [False, True])
def test_every_command(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, *, orthogonal: bool
) -> None:
    """With columns of very different lengths, two of them nearly the same."""
    u = (torch.randn(COLUMNS, RANK) * torch.tensor([1.0, 2.0**-9, 2.0**5])).to(dtype)
    u[:, 1] = u[:, 0] + u[:, 1]
    stored = {"l.weight": torch.randn(OUT, COLUMNS).to(torch.bfloat16), "l.bias": torch.randn(OUT)}
    adapter = write(tmp_path / "a", {"l.hra_u": u}, **fields(apply_GS=orthogonal))
    formulas = {"l.weight": formula_of(u, orthogonal=orthogonal)}
    require_commands(tmp_path, stored, adapter, formulas, monkeypatch)


@pytest.mark.parametrize("most", [1, 1 << 14])
@pytest.mark.parametrize("output", NARROW)
def test_convolutions_and_elements_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, output: torch.dtype
) -> None:
    monkeypatch.setattr(requirements, "_MOST_NEIGHBOURS", most)
    u = torch.randn(COLUMNS, RANK, dtype=torch.float64) * 1e-200
    stored = {"l.weight": torch.randn(OUT, 3, 2, 2).to(output), "l.bias": torch.randn(OUT)}
    adapter = write(tmp_path / "a", {"l.hra_u": u}, **fields())
    require_commands(tmp_path, stored, adapter, {"l.weight": formula_of(u)}, monkeypatch, lora=False)


def test_settled_by_rationals_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    u, weight = torch.randn(COLUMNS, RANK), torch.randn(OUT, COLUMNS).to(torch.bfloat16)
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight})
    adapter = write(tmp_path / "a", {"l.hra_u": u}, **fields())
    codec = blocks.BY_DTYPE["BF16"]

    def all_open(values: Any, *rest: Any, **more: Any) -> Any:
        codec.encode(values, *rest, **more)
        return np.arange(len(values))

    monkeypatch.setattr(blocks, "BY_DTYPE", {"BF16": dataclasses.replace(codec, encode=all_open)})
    monkeypatch.setattr(correct_rounding, "DOUBLES", dataclasses.replace(DOUBLES, blockwise=None))
    monkeypatch.setattr(correct_rounding, "DIGITS", dataclasses.replace(DIGITS, blockwise=None))
    monkeypatch.setattr(correct_rounding, "UNIT", 2.0**-7)
    report = adaptertool.merge(base, [adapter], tmp_path / "out")
    assert report.settled_one_by_one == report.settled > 5
    require(load(tmp_path / "out")["l.weight"], formula_of(u)(matrix(weight)), weight)


def test_reflections_of_few_bits_give_middles(tmp_path: Path) -> None:
    """I − 2·u·uᵀ/‖u‖² of (1, 1, 0, ...) exchanges two columns, with the other sign; of (1, 1, 1, 1) it has halves."""
    u = torch.zeros(COLUMNS, 2)
    u[:2, 0], u[4:8, 1] = 1, 1
    weight = torch.randint(-300, 300, (40, COLUMNS)).to(torch.bfloat16)
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight})
    report = adaptertool.merge(base, [write(tmp_path / "a", {"l.hra_u": u}, **fields(r=2))], tmp_path / "out")
    found = load(tmp_path / "out")["l.weight"]
    require(found, formula_of(u)(matrix(weight)), weight)
    assert (found[:, 0] == -weight[:, 1]).all() and report.settled_one_by_one == 0


@pytest.mark.parametrize(
    ("u", "more", "error"),
    [
        (torch.ones(COLUMNS, RANK), {"apply_GS": True}, InputError),
        (torch.zeros(COLUMNS, 1), {}, InputError),
        (torch.ones(COLUMNS + 1, RANK), {}, MismatchError),
        (torch.ones(RANK, COLUMNS), {}, MismatchError),
        (torch.ones(COLUMNS), {}, UnsupportedError),
        (torch.ones(COLUMNS, 0), {}, AdapterToolError),
        (torch.ones(COLUMNS, RANK), {"apply_GS": None}, UnsupportedError),
        (torch.ones(COLUMNS, RANK), {"unknown": 1}, UnsupportedError),
    ],
)
def test_what_is_refused(tmp_path: Path, u: torch.Tensor, more: dict[str, Any], error: type[Exception]) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, COLUMNS)})
    with pytest.raises(error):
        adaptertool.merge(base, [write(tmp_path / "a", {"l.hra_u": u}, **fields(**more))], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_vector_twice_is_no_reflection(tmp_path: Path) -> None:
    u = torch.randn(COLUMNS, 1).repeat(1, 2)
    weight = torch.randn(OUT, COLUMNS).to(torch.bfloat16)
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight})
    adaptertool.merge(base, [write(tmp_path / "a", {"l.hra_u": u}, **fields(r=2))], tmp_path / "out")
    assert load(tmp_path / "out")["l.weight"].equal(weight)


@pytest.mark.parametrize("weight", [1.0, -0.3])
def test_weights_in_float64(tmp_path: Path, weight: float) -> None:
    u, stored = torch.randn(COLUMNS, RANK, dtype=torch.float64), torch.randn(OUT, COLUMNS, dtype=torch.float64)
    base = write_checkpoint(tmp_path / "base", {"l.weight": stored})
    adapter = write(tmp_path / "a", {"l.hra_u": u}, **fields())
    adaptertool.merge(base, [adapter], tmp_path / "out", weights=[weight], verify=True)
    exact = mixed(matrix(stored), formula_of(u)(matrix(stored)), Fraction(weight))
    require(load(tmp_path / "out")["l.weight"], exact, stored)
