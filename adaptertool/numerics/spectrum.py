"""What a spectrum says of a change: how many directions it really has. Of singular values σ that descend, at any scale.

Entropy rank: O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality", 2007. Stable rank:
M. Rudelson, R. Vershynin, "Sampling from large matrices", 2007.
"""

from __future__ import annotations

import numpy as np

from adaptertool.numerics.rounding import Array

MAX_VALUES = 2_000_000  # that are told of all changes of an adapter together
_DIGITS = 6  # of each
_SEEN = 1e-14  # of squares added up; below it nothing is seen of a rest


def entropy_rank(values: Array, rest: float = 0.0) -> float:
    """exp(−Σ p·ln p) with p = σ/Σσ, of singular values σ: n where n of them are equal and the others 0. 0 where all
    are.

    rest: Σσ² of the values that are not among `values`, none of which is larger. They count as rest/σₙ² values of size
    σₙ, the smallest one known: the fewest that they can be, so the result is then a lower bound.
    """
    values = values[values > 0]
    if not len(values):
        return 0.0
    tail = rest / values.min() if rest > _SEEN * np.square(values).sum() else 0.0
    total = values.sum() + tail
    shares = values / total
    return float(np.exp(-(shares * np.log(shares)).sum() - tail / total * np.log(shares.min())))


def stable_rank(values: Array, rest: float = 0.0) -> float:
    """Σσ² / max σ², of singular values (n,): never above the rank, and hardly moved by small values. 0 where all are.
    rest: as in `entropy_rank`."""
    largest = values.max(initial=0.0)
    return float(np.square(values / largest).sum() + rest / largest**2) if largest else 0.0


def profile(values: Array, most: int) -> tuple[float, ...]:
    """The first `most` of the singular values (n,), over the largest, with the digits that are worth telling."""
    found: list[float] = np.round(values[:most] / (values.max(initial=0.0) or 1.0), _DIGITS).tolist()
    return tuple(found)
