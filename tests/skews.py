"""Blocks with Qᵀ = −Q and what Cayley's transform makes of them, and reflections, in rationals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch


def skews(count: int, wide: int, seed: int = 0) -> np.ndarray:
    """Of numbers that float32 holds."""
    above = np.triu(np.random.default_rng(seed).standard_normal((count, wide, wide)).astype(np.float32), 1)
    return (above - above.transpose(0, 2, 1)).astype(np.float64)


def identity(wide: int) -> Any:
    return np.array([[Fraction(int(i == j)) for j in range(wide)] for i in range(wide)])


def times(left: Any, right: Any) -> Any:
    return np.array([[sum(a * b for a, b in zip(row, column, strict=True)) for column in right.T] for row in left])


def cayley(q: Any) -> Any:
    """(I + Q)·(I − Q)⁻¹, by Gauss's elimination."""
    wide = len(q)
    exact = np.frompyfunc(Fraction, 1, 1)(q)
    rows = np.concatenate([identity(wide) - exact, identity(wide)], axis=1)
    for k in range(wide):
        rows[k] = rows[k] / rows[k, k]
        for i in range(wide):
            if i != k:
                rows[i] = rows[i] - rows[i, k] * rows[k]
    return times(identity(wide) + exact, rows[:, wide:])


def reflections(u: torch.Tensor, *, orthogonal: bool = False) -> Any:
    """Their product, one after the other; along what Gram and Schmidt make of the columns of u."""
    made, turn = list[Any](), identity(len(u))
    for column in u.double().T.tolist():
        own = np.array([Fraction(number) for number in column])
        for other in made if orthogonal else ():
            own = own - (own @ other) / (other @ other) * other
        made.append(own)
        turn = turn - 2 * np.outer(turn @ own, own) / (own @ own)
    return turn
