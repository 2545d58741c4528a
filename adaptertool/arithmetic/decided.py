"""Which of the numbers that codes may have is nearest to an exact value, and whether that exceeds a limit: what float64
leaves open is decided in double-double, and what that leaves open by rationals, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from adaptertool.arithmetic.correct_rounding import OpenElements
from adaptertool.arithmetic.elements import values_of
from adaptertool.codecs.quantised.lattice import Levels
from adaptertool.errors import InternalError
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.interval import Interval
from adaptertool.numerics.ops import DOUBLES
from adaptertool.numerics.rounding import Array
from adaptertool.records import dataclass

_NARROW = 2.0**-30  # of the distance between two middles: an interval that holds one of them at most


@dataclass(frozen=True, slots=True)
class Decider:
    """Elements of a block, all of whose values are multiplied by `divisor`.

    open:   what knows of them; None where the values in float64 are what counts
    before: what the base has, float64, flat
    values: in float64, flat
    """

    open: OpenElements | None
    before: Array
    values: Array
    divisor: float

    def signs(self, where: Array, limits: Array) -> Array:
        """The signs of value·divisor − limit of elements `where` (n,), ascending; limits float64 (n,)."""
        found, known = _side(self._pairs(where), limits)
        for place in np.flatnonzero(~known).tolist():
            found[place] = self.sign(int(where[place]), Fraction(float(limits[place])))
        return found

    def sign(self, element: int, limit: Fraction) -> int:
        """That of value·divisor − limit of one. Raises InternalError where no precision tells."""
        for exact in self._narrowing(element):
            if exact.low > limit or exact.high < limit or exact.low == exact.high:
                return (exact.high > limit) - (exact.low < limit)
        raise InternalError(f"element {element} cannot be compared with {float(limit)}")

    def nearest(self, levels: Levels, where: Array, scales: Array) -> Array:
        """The places among the levels nearest to value·divisor / scale, (n,); of two that of the even code."""
        pairs = self._pairs(where)
        with np.errstate(all="ignore"):
            guess = levels.guess(pairs.high / scales)
        middles = np.concatenate([[-np.inf], levels.middles, [np.inf]])
        below, above = middles[guess] * scales, middles[guess + 1] * scales
        upper = np.isfinite(above) & ((above - pairs.high < pairs.high - below) | ~np.isfinite(below))
        number = np.where(upper, guess, guess - 1).astype(np.int64)  # of the middle that is nearest
        side, known = _side(pairs, levels.middles[number] * scales)
        known &= pairs.error <= _NARROW * np.where(np.isfinite(above - below), above - below, abs(pairs.high))
        found: Array = number + ((side > 0) | ((side == 0) & levels.evens[number]))
        for place in np.flatnonzero(~known).tolist():
            found[place] = self._nearest(levels, int(where[place]), Fraction(float(scales[place])))
        return found

    def _nearest(self, levels: Levels, element: int, scale: Fraction) -> int:
        for exact in self._narrowing(element):
            low, high = (levels.nearest(end / scale) for end in (exact.low, exact.high))
            if low == high:
                return low
        raise InternalError(f"element {element} cannot be rounded to codes")

    def _pairs(self, where: Array) -> DoubleDouble:
        """value·divisor with a bound of its error."""
        if self.open is None:
            return DoubleDouble.of(self.values[where]) * Fraction(self.divisor)
        some = self.open
        if not DOUBLES.can(some.chain.requirements.operations):
            return DoubleDouble(np.stack([self.values[where], np.zeros(len(where)), np.full(len(where), np.inf)]))
        made = [
            value.parts
            for _, value in values_of(
                DOUBLES, some.chain, (some.first, some.last), where, self.before[where], some.alpha
            )
        ]
        pairs = DoubleDouble(np.concatenate([np.empty((3, 0)), *made], axis=1))
        return pairs if self.divisor == 1 else pairs * Fraction(self.divisor)

    def _narrowing(self, element: int) -> Iterator[Interval]:
        if self.open is None:
            yield Interval.of(Fraction(float(self.values[element])) * Fraction(self.divisor))
            return
        row, column = divmod(element, self.open.columns)
        self.open.counts.one_by_one += 1
        for exact in self.open.narrowing(row, column, self.before[element].item()):
            yield exact * Fraction(self.divisor)


def _side(pairs: DoubleDouble, limits: Array) -> tuple[Array, Array]:
    """The signs of value − limit, and where they are sure."""
    apart = pairs - DoubleDouble.of(limits)
    with np.errstate(all="ignore"):
        size, zero = abs(apart.high) - abs(apart.low), (apart.high == 0) & (apart.low == 0)
        known = np.isfinite(apart.high) & ((size > apart.error) | (zero & (apart.error == 0)))
    return np.sign(apart.high).astype(np.int64), known
