"""What a spectrum says of a change: how many directions it really has. Of singular values σ that descend, at any scale.

Entropy rank: O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality", 2007. Stable rank:
M. Rudelson, R. Vershynin, "Sampling from large matrices", 2007.
"""

from __future__ import annotations

import numpy as np

from adaptertool.numerics.rounding import Array

MAX_VALUES = 2_000_000  # that are told of all changes of an adapter together
_DIGITS = 6  # of each


def entropy_rank(values: Array) -> float:
    """exp(−Σ p·ln p) with p = σ/Σσ: n where n values are equal and the rest is 0. 0 where all are."""
    total = values.sum()
    shares = values[values > 0] / total if total else values[:0]
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def stable_rank(values: Array) -> float:
    """Σσ² / max σ²: never above the rank, and hardly moved by small values. 0 where all are."""
    largest = values.max(initial=0.0)
    return float(np.square(values / largest).sum()) if largest else 0.0


def profile(values: Array, most: int) -> tuple[float, ...]:
    """The first `most`, over the largest, with the digits that are worth telling."""
    found: list[float] = np.round(values[:most] / (values.max(initial=0.0) or 1.0), _DIGITS).tolist()
    return tuple(found)
