"""What many differences say together, where each alone may be rounding.

Random roundings average out along any direction; a scale that is off does not. So the sum T = Σ d·Δ, of what is stored
less what an honest recipe stores (d) along the change that an adapter makes (Δ), is compared with its standard error.
Errors that go with a row (the norm of DoRA, a factor B in few bits) or a column (a factor A) are shared by all of its
elements, so the standard error is the largest of those that elements, rows and columns give as independent samples
(R. Cameron, J. Gelbach, D. Miller, "Robust Inference With Multiway Clustering", JBES 2011, in its simplest form).

Beyond DEVIATIONS standard errors it is no chance: about 2·10⁻⁹ for a normal sum. Of few samples the tails are heavier,
and the limit is higher, near the quantile of Student's t at the same level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.numerics.rounding import Array

DEVIATIONS = 6.0  # standard errors
_FEWEST = 8  # rows or columns that are samples


class Lean(NamedTuple):
    """A sum along a direction, and the variance that it has where samples are independent and of no mean."""

    shift: float
    variance: float
    significant: bool

    @property
    def deviations(self) -> float:
        return abs(self.shift) / math.sqrt(self.variance) if self.variance > 0 else 0.0


def lean(off: Array, direction: Array, *, by_row: bool = False) -> Lean:
    """The sum of off·direction, matrices (rows, columns). by_row: errors go with rows, so too few rows tell nothing."""
    terms = off * direction
    shift, variance, strengths = float(terms.sum()), 0.0, []
    for samples in (terms.ravel(), terms.sum(1), terms.sum(0)):
        count = len(samples)
        if count < _FEWEST:
            continue
        own = float(((samples - samples.mean()) ** 2).sum()) * count / (count - 1)
        limit = DEVIATIONS * (1 + 14 / count)
        strengths.append(abs(shift) / (limit * math.sqrt(own)) if own > 0 else math.inf if shift else 0.0)
        variance = max(variance, own)
    tells = len(terms) >= _FEWEST or not by_row
    return Lean(shift, variance, tells and min(strengths, default=0.0) > 1)


def toward_zero(off: Array, exact: Array) -> Lean:
    """Whether what is stored lies on one side of what should be: signs of `off` along the signs of `exact`."""
    return lean(np.sign(off), np.sign(exact))


class Fit(NamedTuple):
    """A scale c of a change, for which W + c·Δ rounds to most of what is stored; c is within low..high."""

    scale: float
    low: float
    high: float

    @property
    def error(self) -> float:
        return (self.high - self.low) / 2


def interval(found: Array, rest: Array, change: Array, half: Array) -> tuple[Array, Array]:
    """(low, high): the c for which each element is within `half` of rest + c·change. All flat."""
    moves = np.flatnonzero(change)
    centre, width = (found[moves] - rest[moves]) / change[moves], half[moves] / abs(change[moves])
    return centre - width, centre + width


def most_common(low: Array, high: Array) -> Fit | None:
    """The c that lies in the most of the intervals: unlike least squares, without a bias by what rounding takes away,
    and by a minority that is wrong in another way."""
    if not len(low):
        return None
    starts, ends = np.sort(low), np.sort(high)
    inside = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, "left")
    missed = len(starts) - int(inside.max())
    best = starts[inside >= inside.max() - math.isqrt(missed)]
    first, last = float(best[0]), float(best[-1])
    after = np.searchsorted(ends, last, "left")
    last = float(ends[after]) if after < len(ends) else last
    return Fit((first + last) / 2, first, last)


def joined(intervals: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    low, high = (np.concatenate(side) for side in zip(*intervals, strict=True))
    return low, high
