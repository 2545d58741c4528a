"""DEFT and PaRa against rationals, through every command."""

from __future__ import annotations

import math
import operator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, write_checkpoint
from one_kind import Formula, require_commands, times, together, write
from rationals import Matrix, matrix, require
from skews import reflections

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

OUT, IN, RANK = 8, 5, 3


def fields(**more: Any) -> dict[str, Any]:
    return {"peft_type": "DEFT", "r": RANK, "decomposition_method": "relu", "para": False, "alpha": None, **more}


def turned(rows: Matrix) -> Matrix:
    return [list(column) for column in zip(*rows, strict=True)]


def formula_of(p: torch.Tensor, r: torch.Tensor | None, scale: Fraction = Fraction(1)) -> Formula:
    """W + s·P·R − P·max(P, 0)ᵀ·W"""

    def changed(w: Matrix) -> Matrix:
        kept = together(w, times(matrix(p), times(turned(matrix(p.clamp(min=0))), w)), Fraction(-1))
        return kept if r is None else together(kept, times(matrix(p), matrix(r)), scale)

    return changed


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (5, 5 / RANK)])
def test_every_command(tmp_path: Path, alpha: int | None, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    p, r = torch.randn(OUT, RANK) / 3, torch.randn(RANK, IN)
    stored = {"l.weight": torch.randn(OUT, IN).to(torch.bfloat16), "l.bias": torch.randn(OUT)}
    adapter = write(tmp_path / "a", {"l.deft_P": p, "l.deft_R": r}, **fields(alpha=alpha))
    require_commands(tmp_path, stored, adapter, {"l.weight": formula_of(p, r, Fraction(scale))}, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_what_is_taken_away_alone(tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    p = (torch.randn(OUT, RANK) / 3).to(dtype)
    adapter = write(tmp_path / "a", {"l.deft_P": p}, **fields(para=True))
    formulas = {"l.weight": formula_of(p, None)}
    require_commands(tmp_path, {"l.weight": torch.randn(OUT, IN)}, adapter, formulas, monkeypatch)


def test_what_a_basis_spans(tmp_path: Path) -> None:
    """I − P is half of the way to the reflection I − 2·P, whose rationals stand in `skews`."""
    p, weight = torch.randn(OUT, RANK), torch.randn(OUT, IN)
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight})
    adapter = write(tmp_path / "a", {"l.deft_P": p}, **fields(para=True, decomposition_method="qr"))
    adaptertool.merge(base, [adapter], tmp_path / "out", verify=True)
    half = (reflections(p, orthogonal=True) + np.eye(OUT, dtype=int)) / 2
    require(load(tmp_path / "out")["l.weight"], times(half.tolist(), matrix(weight)), weight)


def basis_of(p: torch.Tensor) -> Matrix:
    """Q of P = Q·T to 200 bits, by Gram and Schmidt, with the signs that LAPACK gives it."""
    made: list[list[Fraction]] = []
    signs = np.sign(np.diagonal(np.linalg.qr(p.double().numpy())[1])).astype(int).tolist()
    for column in turned(matrix(p)):
        own = column
        for other in made:
            share = sum(map(operator.mul, other, column))
            own = [x - share * y for x, y in zip(own, other, strict=True)]
        square = sum(x * x for x in own) * 4**200
        size = Fraction(math.isqrt(square.numerator // square.denominator), 2**200)
        made.append([x / size for x in own])
    return turned([[sign * x for x in column] for sign, column in zip(signs, made, strict=True)])


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (5, 5 / RANK)])
def test_what_is_put_on_a_basis(
    tmp_path: Path, alpha: int | None, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, r = torch.randn(OUT, RANK), torch.randn(RANK, IN)
    q = basis_of(p)

    def changed(w: Matrix) -> Matrix:
        kept = together(w, times(q, times(turned(q), w)), Fraction(-1))
        return together(kept, times(q, matrix(r)), Fraction(scale))

    adapter = write(tmp_path / "a", {"l.deft_P": p, "l.deft_R": r}, **fields(alpha=alpha, decomposition_method="qr"))
    require_commands(tmp_path, {"l.weight": torch.randn(OUT, IN)}, adapter, {"l.weight": changed}, monkeypatch)


@pytest.mark.parametrize(
    ("p", "r", "more", "error", "message"),
    [
        ((OUT, RANK), (RANK, IN), {"para": True}, MismatchError, "para = True, with"),
        ((OUT, RANK), None, {}, MismatchError, "para = False, with"),
        ((OUT, RANK), (RANK, IN), {"decomposition_method": "svd"}, InputError, "must be relu or qr"),
        ((OUT, RANK), (RANK, IN), {"alpha": "8"}, InputError, "alpha must be a number"),
        ((OUT, RANK), (RANK, IN), {"quite_new": 1}, InputError, "quite_new"),
        ((OUT + 1, RANK), (RANK, IN), {}, MismatchError, "l.weight"),
        ((OUT, RANK), (RANK + 1, IN), {}, MismatchError, "l.weight"),
        ((OUT,), (RANK, IN), {}, InputError, "l.weight"),
        ((OUT, RANK), None, {"para": True, "decomposition_method": "qr"}, InputError, "depends on those before it"),
    ],
)
def test_what_is_refused(
    tmp_path: Path,
    p: tuple[int, ...],
    r: tuple[int, ...] | None,
    more: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    tensors = {"l.deft_P": torch.ones(p)} | ({} if r is None else {"l.deft_R": torch.ones(r)})
    with pytest.raises(error, match=message):
        adaptertool.merge(base, [write(tmp_path / "a", tensors, **fields(**more))], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sign_that_float32_leaves_open(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    p = torch.eye(OUT, RANK)
    p[1:, 1] = torch.tensor([2.0**-22, *torch.ones(OUT - 2)])
    tensors = {"l.deft_P": p, "l.deft_R": torch.ones(RANK, IN)}
    with pytest.raises(UnsupportedError, match="the sign of column 1 of its basis is open"):
        adaptertool.merge(base, [write(tmp_path / "a", tensors, **fields(decomposition_method="qr"))], tmp_path / "out")
    assert not (tmp_path / "out").exists()
