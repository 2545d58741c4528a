"""What tests of blocks that are made in one visit share: factors, the exact result, and room for what is made."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from oracle import round_fraction

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics import compiled

ALL = compiled.levels()
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
ALPHAS = ((1.0,), (1 / 3, 1.0, -2.0, 0.1 + 2.0**-50), tuple(k / 8 for k in range(1, 9)))


def factors(how: str, dtype: str, rows: int, columns: int, rank: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """(w as stored, left, right)"""
    w = rng.standard_normal((rows, columns)) * 0.02
    left, right = rng.standard_normal((rows, rank)) * 0.02, rng.standard_normal((rank, columns)) * 0.1
    few = "F32"
    if how == "few bits":
        few = "BF16"
    if how == "wide":  # exponents far apart, also among the weights: subnormal numbers, zeros
        w *= 2.0 ** rng.integers(-130 if dtype != "F16" else -20, 8, w.shape)
        left *= 2.0 ** rng.integers(-30, 6, left.shape)
        right *= 2.0 ** rng.integers(-30, 6, right.shape)
        w[:, ::5], left[::4], right[:, ::3] = 0.0, 0.0, 0.0
        w[1::2] *= -1
    stored = rounded(w, dtype)
    if how == "ties":  # half a unit in the last place of each weight, and what is next to it
        left, right = np.zeros((rows, rank)), np.zeros((rank, columns))
        left[:, 0], numbers = 0.5, doubles(stored, dtype)
        right[0] = BY_DTYPE[dtype].spacing(numbers)[rng.integers(rows, size=columns), np.arange(columns)]
        right[0] *= rng.choice([-1.0, 1.0], columns)
        right[0, 1::3] *= 1 + 2.0**-23
        right[0, 2::3] *= 1 - 2.0**-24
    return stored, doubles(rounded(left, few), few), doubles(rounded(right, few), few)


def exact(w: Any, left: Any, right: Any, i: int, j: int) -> tuple[Fraction, Fraction]:
    """(w, the sum of products)"""
    pairs = zip(left[i].tolist(), right[:, j].tolist(), strict=True)
    return Fraction(w[i, j].item()), sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction())


def require(dtype: str, stored: Any, out: Any, place: tuple[int, ...], value: Fraction) -> None:
    got = doubles(out, dtype)[place]
    expected = round_fraction(value, DTYPES[dtype])
    assert expected is not None
    assert Fraction(got.item()) == expected, (place, got, float(value))
    if expected == 0:
        before = doubles(stored, dtype)[place]
        assert np.signbit(got) == (value < 0 or (value == 0 and before == 0 and np.signbit(before)))


def room(stored: Any, count: int) -> tuple[list[Any], Callable[[], bool]]:
    """Room for `count` results, and whether nothing was written beside it."""
    rows = np.full((count, stored.size + 64), 7, stored.dtype)
    return [row[32:-32] for row in rows], lambda: bool((rows[:, :32] == 7).all() and (rows[:, -32:] == 7).all())
