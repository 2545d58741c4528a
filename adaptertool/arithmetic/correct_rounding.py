"""Settles the elements that floating point leaves open: those so near to the middle of two stored values that the
error of the arithmetic counts.

Stages, each for what the one before left: float64 with its error bound; double-double, with a bound for each element
(numerics.double_double), where there are norms first with those of float64, which take no whole rows (by_row); long
numbers, which have errors by roots and quotients alone (numerics.digits); and rationals, one by one
(numerics.interval). All but the last take many elements at once. Of what is stored as float64 the first decides
nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

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
from adaptertool.numerics.digits_rounded import ends
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Bound
from adaptertool.numerics.interval import Interval, intervals
from adaptertool.numerics.ops import BLOCKS, DIGITS, DOUBLES, INTERVALS
from adaptertool.numerics.rounding import Array

_MOST_BITS = 1 << 13  # of a root; one that is open at so many is a middle, as good as surely
_IN_VAIN = 0.75  # of the elements that a stage has looked at: where it leaves more open it goes no further


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
        operations = self.chain.requirements.operations
        if len(left) and DOUBLES.can(operations):
            if codec.rounds and (norms := self._norms_within()):
                left = self._by_pairs(left, where, before, values, found, norms)
            if len(left):
                left = self._by_pairs(left, where, before, values, found, None)
        self.counts.exactly += 0 if codec.rounds else len(left)
        if len(left) and self._has_digits():
            left = self._by_digits(left, where, before, values, found)
        self.counts.one_by_one += len(left)
        for place in left.tolist():
            row, column = divmod(int(where[place]), self.columns)
            value = self._by_rationals(row, column, before[place].item(), values[place].item())
            found[place] = rounded(np.array([value]), self.dtype)[0]
        return found

    def _has_digits(self) -> bool:
        """Whether long numbers can do what is computed here: they hold no quotients that were stored."""
        return DIGITS.can(self.chain.requirements.operations) and not self.chain.quotients

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
    ) -> Array:
        """Decide what double-double can; returns what is left. norms: None to compute them in double-double, from all
        of the rows"""
        still = [left[:0]]
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
            zero = (value.high == 0) & (value.error == 0)
            found[place], same = self._stored(value.ends(odd=BY_DTYPE[self.dtype].rounds))
            certain = value.known & (same | zero)
            self._sign_zeros(some[(value.high == 0) & certain], before, values, found)
            still.append(some[~certain])
            in_vain = part.stop is not None and sum(map(len, still)) > part.stop * _IN_VAIN
            if in_vain and (norms is not None or self._has_digits()):  # the next stage has it all, many at once
                still.append(left[part.stop :])
                break
        return np.concatenate(still)

    def _stored(self, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        """The lower ends of intervals as stored, and whether the upper ones are stored as the same bits."""
        words = BY_DTYPE[self.dtype].words
        low, high = (rounded(end, self.dtype) for end in ends)
        return low, words(low) == words(high)

    def _sign_zeros(self, some: Array, before: Array, values: Array, found: Array) -> None:
        """Elements that are exactly 0: where nothing was added to a zero it keeps its sign, a difference is +0."""
        if len(some):
            found[some] = rounded(self._zeros(before[some], values[some]), self.dtype)

    def _by_digits(self, left: Array, where: Array, before: Array, values: Array, found: Array) -> Array:
        """Decide what long numbers can; returns what is left."""
        still, rows = [left[:0]], (self.first, self.last)
        for part, value in values_of(DIGITS, self.chain, rows, where[left], before[left], self.alpha):
            some = left[part]
            below, above, known = ends(value, odd=BY_DTYPE[self.dtype].rounds)
            zero = known & (below == 0) & (above == 0)
            found[some], same = self._stored((below, above))
            self._sign_zeros(some[zero], before, values, found)
            still.append(some[~(known & (same | zero))])
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
