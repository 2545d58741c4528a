"""Settles the elements that floating point leaves open: those so near to the middle of two stored values that the
error of the arithmetic counts.

Stages, each for what the one before left: float64 with its error bound; with that of single rows, where there are
norms; or exact residues modulo 2^64, which tell the side of a middle (numerics.modular), all at once; and rationals,
one by one (numerics.interval).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.arithmetic.chain import UNIT, Chain
from adaptertool.arithmetic.exact_norms import ExactRows
from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.errors import InternalError, UnsupportedError, argument, shown
from adaptertool.numerics.error_bound import Bound, interpolated
from adaptertool.numerics.interval import Interval, intervals
from adaptertool.numerics.modular import Residue
from adaptertool.numerics.ops import FLOATS, INTERVALS, RESIDUES
from adaptertool.numerics.rounding import Array, to_odd

_AT_ONCE = 1 << 17  # factors of single elements
_MANY = 4  # open elements of a row: then the error of that row alone is looked at
_MOST_BITS = 1 << 14  # of a root; an element that is open at so many is a fault of ours


def interpolate(before: Any, after: Any, alpha: Any) -> Any:
    """before + α·(after − before), of arrays of any one number system and shape; `after` itself where α is 1."""
    return after if alpha == 1 else before + (after - before) * alpha


@dataclass(slots=True)
class Settled:
    """How many elements were decided by exact arithmetic, and how many of them one by one."""

    exactly: int = 0
    one_by_one: int = 0


@dataclass(frozen=True, slots=True)
class OpenElements:
    """The open elements of a block: rows first..last of a tensor with `columns` elements each."""

    chain: Chain
    lines: ExactRows
    first: int
    last: int
    columns: int
    norms: Mapping[int, Array]  # in float64, by the number of the edit
    size: Bound  # of the values in float64, errors included
    alpha: float
    replaced: bool  # the result is a stored tensor itself: its zeros keep their sign
    dtype: str  # of the output
    counts: Settled = field(default_factory=Settled)

    def settle(self, where: Array, before: Array, values: Array | None) -> Array:
        """The correctly rounded results (n,) at `where` (n,), indices into the block, as stored; a NaN or infinity as
        it comes.

        before: what the base has there, float64 (n,); values: the results in float64 (n,), or None to compute them here
        """
        found = np.empty(len(where), BY_DTYPE[self.dtype].held)
        count = max(64, _AT_ONCE // self.chain.requirements.width)
        order = np.argsort(self._row(where), kind="stable") if self.norms else np.arange(len(where))
        for start in range(0, len(where), count):
            part = order[start : start + count]
            own = None if values is None else values[part]
            found[part] = self._settle(where[part], before[part], own)
        return found

    def _row(self, where: Array) -> Array:
        """The output row of each: a row of the block, or a column of a tensor that is stored transposed."""
        rows: Array = where % self.columns if self.chain.transposed else where // self.columns
        return rows

    def _settle(self, where: Array, before: Array, values: Array | None) -> Array:
        at, found = (where // self.columns, where % self.columns), np.empty(len(where), BY_DTYPE[self.dtype].held)
        if values is None:
            start = before.reshape(-1, 1, 1)
            rows = (self.first, self.last, at, start)
            after = self.chain.pick(FLOATS, *rows, norms=self.norms)
            values = interpolate(start, after, self.alpha).reshape(-1)
        left = BY_DTYPE[self.dtype].encode(values, *self.size.margin(UNIT), found)
        left = left[np.isfinite(values[left])]
        if len(left) and self.norms:
            left = self._by_row(left, self._row(where), before, values, found)
        self.counts.exactly += len(left)
        if len(left) and RESIDUES.can(self.chain.requirements.operations):
            left = self._by_residues(left, at, before, values, found)
        self.counts.one_by_one += len(left)
        for place in left.tolist():
            value = self._by_rationals(int(at[0][place]), int(at[1][place]), before[place].item(), values[place].item())
            found[place] = rounded(np.array([value]), self.dtype)[0]
        return found

    def _by_row(self, left: Array, row: Array, before: Array, values: Array, found: Array) -> Array:
        """Decide those that are certain by the error of their own row; returns what is left. A row of tiny norm, by
        which DoRA divides, has all rows of its block taken for as uncertain as itself."""
        still = []
        for number, count in zip(*np.unique(row[left], return_counts=True), strict=True):
            some = left[row[left] == number]
            if count > _MANY:
                size = self._size_of_row(int(number), before[some])
                certain = np.empty(len(some), BY_DTYPE[self.dtype].held)
                open_still = BY_DTYPE[self.dtype].encode(values[some], *size.margin(UNIT), certain)
                found[some] = certain
                some = some[open_still]
            still.append(some)
        return np.concatenate(still)

    def _size_of_row(self, row: int, before: Array) -> Bound:
        base = Bound(float(abs(before).max()))
        changed = self.chain.size(base, self.first, self.last, self.norms, UNIT, row=row)
        return changed if self.alpha == 1 else interpolated(base, changed, self.alpha, UNIT)

    def _by_residues(self, left: Array, at: Any, before: Array, values: Array, found: Array) -> Array:
        """Decide what residues can; returns what is left."""
        error, relative = self.size.margin(UNIT)
        reach = error + relative * abs(values[left])
        low, high = found[left], rounded(values[left] + reach, self.dtype)
        start = Residue.of(before[left][:, None, None])
        after = self.chain.pick(RESIDUES, self.first, self.last, (at[0][left], at[1][left]), start)
        exact = interpolate(start, after, Fraction(self.alpha))
        # The value itself, where it is small: above all exact zeros.
        sign, certain = exact.signs(reach)
        zero = (sign == 0) & certain & (abs(values[left]) <= reach)
        found[left[zero]] = rounded(self._zeros(before[left[zero]], values[left[zero]]), self.dtype)
        # The side of the middle, where there is one middle only.
        middle, single = _middles(low, high, self.dtype)
        side, certain = (exact - Residue.of(middle[:, None, None])).signs(2 * reach)
        decided = certain & single & ~zero
        even = BY_DTYPE[self.dtype].words(low) & 1 == 0
        result = np.where((side < 0) | ((side == 0) & even), low, high)
        found[left[decided]] = result[decided]
        undecided: Array = left[~(decided | zero)]
        return undecided

    def _by_rationals(self, row: int, column: int, before: float, value: float) -> float:
        for exact in self._narrowing(row, column, before):
            if exact.low == exact.high == 0:
                return float(self._zeros(np.array([before]), np.array([value]))[0])
            ends = rounded(np.array([to_odd(exact.low), to_odd(exact.high)]), self.dtype)
            low, high = BY_DTYPE[self.dtype].words(ends)
            if low == high:
                return float(doubles(ends, self.dtype)[0])
        raise InternalError(f"an element cannot be rounded: it is {value} to {_MOST_BITS} bits")

    def _narrowing(self, row: int, column: int, before: float) -> Iterator[Interval]:
        """The exact value, or ever narrower intervals that hold it."""
        if not INTERVALS.can(self.chain.requirements.operations):
            raise UnsupportedError(
                f"{shown(self.chain.step.spec.name)}: no exact arithmetic here can do what kind "
                f"{self.chain.step.edits[-1].kind} computes; take it with {argument('precision')} fast"
            )
        alpha = Fraction(self.alpha)
        start, at = intervals(np.full((1, 1, 1), before)), (np.array([row]), np.array([column]))
        bits = 128
        while bits <= _MOST_BITS:
            rational = self.chain.requirements.rational
            norms = {} if rational else self.lines.norms_of_base(self.first + row, column, bits)
            if norms is None:
                yield interpolate(*self.lines.line(self.first + row, column, bits), alpha)
            else:
                after = self.chain.pick(INTERVALS, self.first, self.last, at, start, norms=norms)
                yield interpolate(start, after, alpha)[0, 0, 0]
            if not norms and norms is not None:
                return
            bits *= 4

    def _zeros(self, before: Array, values: Array) -> Array:
        """Where nothing was added to a zero it keeps its sign; a difference that vanishes is +0."""
        if self.replaced:
            return np.copysign(0.0, values)
        return np.where(before == 0, before, 0.0)


def _middles(low: Array, high: Array, dtype: str) -> tuple[Array, Array]:
    """The middle of two neighbours, and whether they are neighbours: −0 and +0 are, with the middle 0."""
    below, above = doubles(low, dtype), doubles(high, dtype)
    largest, step = BY_DTYPE[dtype].largest, BY_DTYPE[dtype].last_step
    middle = (np.maximum(below, -largest) + np.minimum(above, largest)) / 2
    middle = np.where(np.isinf(above), largest + step / 2, np.where(np.isinf(below), -largest - step / 2, middle))
    return middle, _ordered(high, dtype) - _ordered(low, dtype) == 1


def _ordered(stored: Array, dtype: str) -> Array:
    """Integers in the order of the floats, −0 one below +0."""
    words = BY_DTYPE[dtype].words(stored)
    bits, half = words.astype(np.int64), (int(np.iinfo(words.dtype).max) + 1) // 2
    ordered: Array = np.where(bits < half, bits, half - 1 - bits)
    return ordered
