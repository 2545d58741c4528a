"""Settles the elements that floating point leaves open: those so near to the middle of two stored values that the
error of the arithmetic counts.

Stages, each for what the one before left: float64 with its error bound; double-double, with a bound for each element
(numerics.double_double), where there are norms first with those of float64, which take no whole rows (by_row); where
there are none exact residues modulo 2^64, which tell the side of a middle (numerics.modular); and rationals, one by one
(numerics.interval). All but the last take many elements at once. Of what is stored as float64 the first decides
nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from adaptertool.arithmetic.by_row import norms_within
from adaptertool.arithmetic.chain import UNIT, Chain
from adaptertool.arithmetic.elements import every, interpolate, values_of
from adaptertool.arithmetic.exact_norms import ExactRows
from adaptertool.arithmetic.single import pick
from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles, rounded, rounded_exactly
from adaptertool.codecs.tensors import exact_quotients
from adaptertool.errors import NonFiniteError, UnsupportedError, argument, shown
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Bound
from adaptertool.numerics.interval import Interval, intervals
from adaptertool.numerics.modular import Residue
from adaptertool.numerics.ops import BLOCKS, DOUBLES, INTERVALS, RESIDUES
from adaptertool.numerics.rounding import Array
from adaptertool.records import dataclass, field

_AT_ONCE = 1 << 17  # factors of single elements
_MOST_BITS = 1 << 13  # of a root; one that is open at so many is a middle, as good as surely


@dataclass(slots=True)
class Settled:
    """How many elements were decided by exact arithmetic, and how many of them one by one."""

    exactly: int = 0
    one_by_one: int = 0


class _Near(NamedTuple):
    """What double-double knows of elements that it leaves open, (n,) each."""

    low: Array  # both ends of the interval that holds the value, as stored
    high: Array
    reach: Array  # from the middle of the interval to its ends
    size: Array  # of the middle


@dataclass(frozen=True, slots=True)
class OpenElements:
    """The open elements of a block: rows first..last of a tensor with `columns` elements each."""

    chain: Chain
    lines: ExactRows
    first: int
    last: int
    columns: int
    norms: Mapping[int, Array]  # in float64, by the number of the edit
    base: Bound  # of what the base has
    size: Bound  # of the values in float64, errors included
    alpha: float
    replaced: bool  # the result is a stored tensor itself: its zeros keep their sign
    dtype: str  # of the output
    counts: Settled = field(default_factory=Settled)

    def settle(self, where: Array, before: Array, values: Array | None, out: Array | None = None) -> Array:
        """The correctly rounded results (n,) at `where` (n,), ascending indices into the block, as stored, in `out` if
        that is there; a NaN or infinity as it comes.

        before: what the base has there, float64 (n,); values: the results in float64 (n,), or None to compute them here
        """
        codec, rows = BY_DTYPE[self.dtype], (self.first, self.last)
        found = np.empty(len(where), codec.held) if out is None else out
        if values is None:
            values = np.empty(len(where))
            for part, own in values_of(BLOCKS, self.chain, rows, where, before, self.alpha, self.norms):
                values[part] = own
        if codec.rounds:
            left = codec.encode(values, *self.size.margin(UNIT), found)
            left = left[np.isfinite(values[left])]
            self.counts.exactly += len(left)
        else:  # float64 itself leaves all of float64 open
            left = every(len(where))
            if not (finite := np.isfinite(values)).all():
                left, found[:] = left[finite], values
        near, operations = None, self.chain.requirements.operations
        if len(left) and DOUBLES.can(operations):
            if codec.rounds and (norms := self._norms_within()):
                left, near = self._by_pairs(left, where, before, values, found, norms)
            if len(left):
                left, near = self._by_pairs(left, where, before, values, found, None)
        self.counts.exactly += 0 if codec.rounds else len(left)
        if len(left) and near is not None and RESIDUES.can(operations) and not self.chain.quotients:
            left = self._by_residues(left, where, before, values, found, near)
        self.counts.one_by_one += len(left)
        for place in left.tolist():
            row, column = divmod(int(where[place]), self.columns)
            value = self._by_rationals(row, column, before[place].item(), values[place].item())
            found[place] = rounded(np.array([value]), self.dtype)[0]
        return found

    def _norms_within(self) -> Mapping[int, DoubleDouble] | None:
        """The norms with what float64 knows of them, where they do not take an element's whole row."""
        if not self.norms or self.chain.requirements.whole_rows:
            return None
        return norms_within(self.chain, self.base, (self.first, self.last), self.norms)

    def _by_pairs(
        self,
        left: Array,
        where: Array,
        before: Array,
        values: Array,
        found: Array,
        norms: Mapping[int, DoubleDouble] | None,
    ) -> tuple[Array, _Near]:
        """Decide what double-double can; returns what is left, and what is known of that. norms: None to compute them
        in double-double, from all of the rows"""
        still: list[tuple[Array, ...]] = [(left[:0], found[:0], found[:0], np.empty(0), np.empty(0))]
        whole, rows = len(left) == len(where), (self.first, self.last)
        at, base = (where, before) if whole else (where[left], before[left])
        for part, value in values_of(DOUBLES, self.chain, rows, at, base, self.alpha, norms):
            some = left[part]
            place = part if whole else some
            if not BY_DTYPE[self.dtype].rounds:  # nearly all are known at once
                nearest = np.empty(len(some))
                rest = value.nearest(nearest)
                found[place] = nearest
                some = place = some[rest]
                value = value[rest]
            low, high, certain = self._ends(value)
            found[place] = low
            self._sign_zeros(some[(value.high == 0) & certain], before, values, found)
            if not certain.all():
                # The ends lie further out by a rounding of `low`.
                reach = np.where(value.known, value.error + abs(value.low) * 2.0**-50, np.inf)
                columns = some, low, high, reach, abs(value.high) + abs(value.low)
                still.append(tuple(column[~certain] for column in columns))
        left, *near = (np.concatenate(column) for column in zip(*still, strict=True))
        return left, _Near(*near)

    def _ends(self, value: DoubleDouble) -> tuple[Array, Array, Array]:
        """Both ends of the intervals as stored, and whether they are one."""
        codec = BY_DTYPE[self.dtype]
        low, high = (rounded(end, self.dtype) for end in value.ends(odd=codec.rounds))
        same = (codec.words(low) == codec.words(high)) | ((value.high == 0) & (value.error == 0))  # −0 and +0 are
        return low, high, value.known & same

    def _sign_zeros(self, some: Array, before: Array, values: Array, found: Array) -> None:
        """Elements that are exactly 0: where nothing was added to a zero it keeps its sign, a difference is +0."""
        if len(some):
            found[some] = rounded(self._zeros(before[some], values[some]), self.dtype)

    def _by_residues(self, left: Array, where: Array, before: Array, values: Array, found: Array, near: _Near) -> Array:
        """Decide what residues can; returns what is left."""
        count, still = max(64, _AT_ONCE // self.chain.requirements.width), [left[:0]]
        for begin in range(0, len(left), count):
            part = slice(begin, begin + count)
            some, low, high, reach, size = left[part], *(column[part] for column in near)
            at = where[some] // self.columns, where[some] % self.columns
            start = Residue.of(before[some][:, None, None])
            after = pick(self.chain, RESIDUES, (self.first, self.last), at, start)
            exact = interpolate(start, after, Fraction(self.alpha))
            # The side of the middle, where there is one middle only; and the value itself, where it is small.
            middle, single = _middles(low, high, self.dtype)
            side, certain = (exact - middle).signs(2 * reach)
            even = BY_DTYPE[self.dtype].words(low) & 1 == 0
            found[some] = np.where((side < 0) | ((side == 0) & even), low, high)
            value = exact.values(size + reach)
            own, _, known = self._ends(value)
            found[some[known]] = own[known]
            self._sign_zeros(some[known & (value.high == 0)], before, values, found)
            still.append(some[~(certain & single | known)])
        return np.concatenate(still)

    def _by_rationals(self, row: int, column: int, before: float, value: float) -> float:
        for exact in self.narrowing(row, column, before):
            if exact.low == exact.high == 0:
                return float(self._zeros(np.array([before]), np.array([value]))[0])
            ends = rounded_exactly([exact.low, exact.high], self.dtype)
            low, high = BY_DTYPE[self.dtype].words(ends)
            if low == high:
                return float(doubles(ends, self.dtype)[0])
        place = f"row {self.first + row:,}, column {column:,}"
        raise UnsupportedError(
            f"{shown(self.chain.step.spec.name)}: {place} is {value:g} to {_MOST_BITS:,} bits, perhaps the middle of "
            "two values, since terms with a root cancel; merge one adapter, then the other, or take it with "
            f"{argument('precision')} fast"
        )

    def narrowing(self, row: int, column: int, before: float) -> Iterator[Interval]:
        """The exact value, or ever narrower intervals that hold it. Raises UnsupportedError where nothing can, and
        NonFiniteError where there is none, since a norm is 0."""
        if not INTERVALS.can(self.chain.requirements.operations):
            raise UnsupportedError(
                f"{shown(self.chain.step.spec.name)}: no exact arithmetic here can do what kind "
                f"{self.chain.step.edits[-1].kind} computes; take it with {argument('precision')} fast"
            )
        alpha = Fraction(self.alpha)
        start, at = self._start(row, column, before), (np.array([row]), np.array([column]))
        bits, rational, found = 128, self.chain.requirements.rational, False
        while bits <= _MOST_BITS:
            norms = {} if rational else self.lines.norms_of_base(self.first + row, column, bits)
            with contextlib.suppress(ZeroDivisionError):  # more bits may tell a norm from 0
                if norms is None:
                    exact = interpolate(*self.lines.line(self.first + row, column, bits), alpha)
                else:
                    after = pick(self.chain, INTERVALS, (self.first, self.last), at, start, norms=norms)
                    exact = interpolate(start, after, alpha)[0, 0, 0]
                found = True
                yield exact
                if not norms and norms is not None:
                    return
            bits *= 4
        if not found:
            name, place = shown(self.chain.step.spec.name), f"row {self.first + row:,}, column {column:,}"
            what = "the result is not a number (DoRA of a weight of norm 0, which is not 0 in float64?)"
            raise NonFiniteError(f"{self.chain.step.base.path}: {name}, {place}: {what}")

    def _start(self, row: int, column: int, before: float) -> Any:
        """What the base has there, an array (1, 1, 1) of Interval."""
        if not self.chain.quotients:
            return intervals(np.full((1, 1, 1), before))
        at = (self.first + row) * self.columns + column
        return intervals(exact_quotients(self.chain.inputs, self.chain.step.base, at, at + 1).reshape(1, 1, 1))

    def _zeros(self, before: Array, values: Array) -> Array:
        """Where nothing was added to a zero it keeps its sign; a difference that vanishes is +0."""
        if self.replaced:
            return np.copysign(0.0, values)
        return np.where(before == 0, before, 0.0)


def _middles(low: Array, high: Array, dtype: str) -> tuple[Residue, Array]:
    """The middle of two neighbours, (n, 1, 1), and whether they are neighbours: −0 and +0 are, with the middle 0.
    Beyond the largest number is one more, if float64 has it."""
    ends, beyond = (doubles(low, dtype), doubles(high, dtype)), BY_DTYPE[dtype].largest + BY_DTYPE[dtype].last_step
    if math.isfinite(beyond):
        ends = ends[0].clip(-beyond, beyond), ends[1].clip(-beyond, beyond)
    known = np.isfinite(ends[0]) & np.isfinite(ends[1])
    below, above = (Residue.of(np.where(known, end, 0.0)[:, None, None]) for end in ends)
    return (below + above) * Fraction(1, 2), known & (_ordered(high, dtype) - _ordered(low, dtype) == 1)


def _ordered(stored: Array, dtype: str) -> Array:
    """Integers in the order of the floats, −0 one below +0."""
    words = BY_DTYPE[dtype].words(stored)
    bits, largest = words.astype(np.int64), int(np.iinfo(words.dtype).max) // 2
    ordered: Array = np.where(words <= largest, bits, largest - bits)
    return ordered
