"""Merges of small matrices in rationals and in decimals of 120 digits."""

from __future__ import annotations

import decimal
import itertools
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import torch
from conftest import load, write_adapter, write_checkpoint
from oracle import fractions, round_fraction

import adaptertool

NARROW = [torch.bfloat16, torch.float16]
OUTPUTS = [*NARROW, torch.float32]
EVERY = [*OUTPUTS, torch.float64]
Matrix = list[list[Fraction]]


def matrix(tensor: torch.Tensor) -> Matrix:
    return [fractions(row) for row in tensor]


def delta(a: torch.Tensor, b: torch.Tensor) -> Matrix:
    columns = list(zip(*matrix(a), strict=True))
    return [
        [sum((x * y for x, y in zip(row, column, strict=True)), Fraction()) for column in columns] for row in matrix(b)
    ]


def require(found: torch.Tensor, exact: Matrix, base: torch.Tensor | None = None) -> None:
    """Every element, bit by bit; the sign of zeros too."""
    numbers, signs = found.to(torch.float64).tolist(), found.signbit().tolist()  # an element of a tensor is dear
    minus_zero = None if base is None else ((base == 0) & base.signbit()).tolist()
    for (i, row), j in itertools.product(enumerate(exact), range(len(exact[0]))):
        value, got = row[j], numbers[i][j]
        expected = round_fraction(value, found.dtype)
        assert expected is not None
        assert Fraction(got) == expected, (i, j, got, float(value))
        if expected == 0:
            negative = value < 0 or (value == 0 and minus_zero is not None and minus_zero[i][j])
            assert signs[i][j] == negative, (i, j, value)


def dora_exactly(base: Matrix, change: Matrix, magnitude: list[Fraction], weight: Fraction) -> Matrix:
    """W + w·(m/‖W + Δ‖·(W + Δ) − W), to 120 digits."""
    with decimal.localcontext(prec=120):
        result = []
        for row, add, m in zip(base, change, magnitude, strict=True):
            combined = [w + d for w, d in zip(row, add, strict=True)]
            square = sum((v * v for v in combined), Fraction())
            norm = (Decimal(square.numerator) / Decimal(square.denominator)).sqrt()
            factor = Fraction(Decimal(m.numerator) / Decimal(m.denominator) / norm)
            result.append([w + weight * (factor * v - w) for w, v in zip(row, combined, strict=True)])
        return result


NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def summed(base: torch.Tensor, change: Matrix) -> Matrix:
    return [[w + d for w, d in zip(*rows, strict=True)] for rows in zip(matrix(base), change, strict=True)]


def merged(folder: Path, base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float = 0) -> torch.Tensor:
    checkpoint = write_checkpoint(folder / "base", {"x.weight": base})
    adapter = write_adapter(
        folder / "a", {"x.lora_A.weight": a, "x.lora_B.weight": b}, r=len(a), lora_alpha=alpha or len(a)
    )
    adaptertool.merge(checkpoint, [adapter], folder / "out")
    return load(folder / "out")["x.weight"]
