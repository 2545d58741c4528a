"""Running error bounds: how far computed numbers may be from the exact ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.lowest_bit import grain_of
from adaptertool.numerics.modular import Residue
from adaptertool.records import dataclass

_MOST_BITS = 24  # of a factor; products with more are rounded anyhow


Array = Any  # of numpy: floats, or numerics.interval.Interval; or numerics.modular.Residue, numerics.dyadic.Dyadic


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound of the numbers of a block: none is larger than `largest`, and none, as computed, further than
    error + relative·(its magnitude as computed) from the exact value.

    grain: all are multiples of 2^grain; None where that is not known. Multiples of it that are smaller than
    2^(grain + 53) are computed without any error in float64.
    moved: none is further than this from what the base has in its place.
    Each is a float for all numbers together; or by row, where a kind knows it by row, an array (n, 1), and no grain.
    """

    largest: Any
    error: Any = 0.0
    grain: int | None = None
    relative: Any = 0.0
    moved: Any = 0.0

    @property
    def absolute(self) -> Any:
        """No number is further from the exact value; infinite where the relative part says nothing."""
        if not isinstance(self.relative, float):
            far = (self.error + self.relative * self.largest) / (1 - np.minimum(self.relative, 0.5))
            return np.where(self.relative < 0.5, far, math.inf)
        if self.relative >= 0.5:
            return math.inf
        return (self.error + self.relative * self.largest) / (1 - self.relative)

    @property
    def of_all(self) -> Bound:
        """By row, the same of all rows."""
        numbers = (self.largest, self.error, self.relative, self.moved)
        largest, error, relative, moved = (float(np.max(number, initial=0.0)) for number in numbers)
        return Bound(largest, error, self.grain, relative, moved)

    @property
    def known(self) -> bool:
        """Whether there is a bound, of every row."""
        return bool(np.isfinite(self.error).all())

    @property
    def exact(self) -> bool:
        return bool(self.error == 0 and self.relative == 0)

    def is_below(self, limit: float) -> bool:
        """Whether all numbers are known, and smaller than that."""
        return math.isfinite(self.error) and bool(self.largest < limit)

    def margin(self, unit: float) -> tuple[Any, Any]:
        """(error, relative), wide enough for x ± (error + relative·|x|) that is computed with roundings of `unit`."""
        wider = 1 + 2.0**-10
        return self.error * wider + 4 * tiny(unit), (self.relative + unit) * wider

    def either(self, other: Bound) -> Bound:
        """The bound of numbers some of which have this bound, some the other."""
        if not all(map(math.isfinite, (self.largest, self.error, other.largest, other.error))):
            return Bound(math.inf, math.inf)  # max() would lose a NaN
        grain = None if self.grain is None or other.grain is None else min(self.grain, other.grain)
        largest, error = max(self.largest, other.largest), max(self.error, other.error)
        return Bound(largest, error, grain, max(self.relative, other.relative), max(self.moved, other.moved))

    def then(self, *, largest: float, error: float, grain: int | None, relative: float, moved: float) -> Bound:
        """The bound after a step in which nothing exceeds `largest`, with these errors unless float64 makes none."""
        known = grain is not None and grain > -1000 and self.exact
        if known and grain is not None and largest < math.ldexp(1.0, min(grain + 53, 1000)):
            return Bound(largest, grain=grain, moved=moved)
        return Bound(largest, error + 2.0**-1072, grain, relative, moved)

    def plus(self, change: float, error: float, unit: float, grain: int | None) -> Bound:
        """The bound of v + p, rounded, for p no larger than `change` and computed to within `error`.

        |fl(v̂ + p̂) − (v + p)| ≤ unit·|result| + |v̂ − v| + |p̂ − p|, and |v̂| ≤ (1 + unit)·|result| + |p̂|.
        """
        return self.then(
            largest=self.largest + change,
            error=(self.error + self.relative * (change + error) + error) * (1 + 2.0**-50),
            grain=grain,
            relative=(unit + self.relative * (1 + unit)) * (1 + 2.0**-50),
            moved=self.moved + change,
        )

    def grain_with(self, factor: Factor, *numbers: float, power: int = 0) -> int | None:
        """The grain of v + factor·numbers·2^power: None where it is not known, or of no use because a number has many
        bits."""
        if self.grain is None:
            return None
        return grain_times(factor.grain + power, self.grain, *numbers)


class Factor:
    """A factor, cut to a block, and what bounds need to know of it: found out when asked for, and once."""

    def __init__(self, array: Array, size: Bound | None = None) -> None:
        self.array = array
        # Of norms: of what they are the norms of, in float64; None where that is all in the block. Of a product that is
        # there in the place of its factors: how far that is off
        self.size = size

    @functools.cached_property
    def largest(self) -> float:
        """The largest magnitude."""
        return float(max(self.array.max(), -self.array.min())) if self.array.size else 0.0

    @functools.cached_property
    def extent(self) -> tuple[float, float]:
        """The smallest magnitude but 0, or 1 where that is smaller, and the largest."""
        if not self.largest > 0:
            return 1.0, self.largest
        sizes = abs(self.array)
        sizes[sizes == 0] = 1.0
        return min(float(sizes.min()), 1.0), self.largest

    @functools.cached_property
    def longest_row(self) -> Any:
        """The largest square of a row's length."""
        return self._longest(1)

    @functools.cached_property
    def longest_column(self) -> float:
        """The largest square of a column's length."""
        return self._longest(0)

    def _longest(self, axis: int) -> float:
        return float((self.array * self.array).sum(axis).max()) if self.array.size else 0.0

    @functools.cached_property
    def residues_by_row(self) -> Array:
        """The factor as a numerics.modular.Residue, with one exponent for each row."""
        return self._residues(1)

    @functools.cached_property
    def residues_by_column(self) -> Array:
        """The factor as a numerics.modular.Residue, with one exponent for each column."""
        return self._residues(0)

    def _residues(self, axis: int) -> Array:
        return Residue.of(self.array, axis)

    @functools.cached_property
    def doubled(self) -> DoubleDouble:
        """The factor as numbers of numerics.double_double."""
        return DoubleDouble.of(self.array)

    @functools.cached_property
    def grain(self) -> int:
        """All its numbers are multiples of 2^grain."""

        return grain_of(self.array)


class FactorByRow(Factor):
    """A factor that goes by row, for bounds by row."""

    @functools.cached_property
    def longest_row(self) -> Any:
        """The square of each row's length, (n, 1)."""
        return (self.array * self.array).sum(1, keepdims=True)


def in_range(extents: Iterable[tuple[float, float]], unit: float) -> bool:
    """Whether numbers are far from where arithmetic of that unit, float32 or float64, under- or overflows, also in a
    product of two."""
    limit = 60 if unit > 2.0**-30 else 500
    return all(smallest > 2.0**-limit and largest < 2.0**limit for smallest, largest in extents)


def may_overflow(unit: float, *numbers: float) -> bool:
    """Whether one of these magnitudes is, or may become, infinite in arithmetic of that unit: times 0 it is NaN."""
    limit = 2.0**120 if unit > 2.0**-30 else 2.0**1000
    return not all(number < limit for number in numbers)


def tiny(unit: float) -> float:
    """More than what underflow takes away from a result."""
    return 2.0**-147 if unit > 2.0**-30 else 2.0**-1072


def has_few_bits(number: float) -> bool:
    return abs(number.as_integer_ratio()[0]).bit_length() <= _MOST_BITS


def grain_times(grain: int, own: int, *numbers: float) -> int | None:
    """The grain of v + x·numbers, for v of grain `own` and x of `grain`; None where a number has many bits."""
    for number in numbers:
        if not has_few_bits(number):
            return None
        grain -= number.as_integer_ratio()[1].bit_length() - 1
    return min(grain, own)


def mixed(size: Bound, other: Bound, weight: float, unit: float) -> Bound:
    """The bound of v + weight·(x − v), for v of bound `size` and x of bound `other`."""
    apart = size.largest + other.largest
    times = abs(weight)
    grain = None
    if size.grain is not None and other.grain is not None and other.exact:
        grain = grain_times(min(size.grain, other.grain), size.grain, weight)
    inherited = (1 + times) * size.absolute + times * other.absolute
    largest = size.largest + max(times, 1) * apart
    return size.then(
        largest=largest,
        error=inherited + 4 * unit * times * (apart + size.absolute + other.absolute) + (1 + times) * tiny(unit),
        grain=grain,
        relative=unit,
        moved=size.moved + times * apart,
    )


def interpolated(before: Bound, after: Bound, alpha: float, unit: float) -> Bound:
    """The bound of b + alpha·(x − b), for what the base has, and what was made of it.

    With d = x − b, no larger than `moved`: |fl(x̂ − b) − d| ≤ unit·|d̂| + |x̂ − x|, two roundings more for alpha and
    the product, and unit·|result| for the sum. The relative part of |x̂ − x| goes with
    |x̂| ≤ |result| + |1 − alpha|·|d| + all errors. Where b is not exact, |1 − alpha| times its error is left.
    """
    times, apart = abs(alpha), after.moved + after.absolute
    grain = None
    if before.grain is not None and after.grain is not None and after.exact:
        grain = grain_times(min(before.grain, after.grain), before.grain, alpha)
    slack = (2 + times) * (after.absolute + 4 * unit * (apart + after.largest))
    inherited = after.error + after.relative * (abs(1 - alpha) * after.moved + slack)
    return before.then(
        largest=before.largest + times * after.moved,
        error=(
            (times * (3 * unit * apart + inherited) + abs(1 - alpha) * before.absolute) * (1 + 2.0**-10)
            + (1 + times) * tiny(unit)
        ),
        grain=grain,
        relative=(unit + times * after.relative) * (1 + 2.0**-10),
        moved=times * after.moved,
    )
