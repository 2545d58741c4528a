"""Settles the elements that floating point leaves open: those so near to the middle of two stored values that the
error of the arithmetic counts.

Three stages, each for what the one before left: float64 with its error bound; exact residues modulo 2^64, which tell
the side of a middle (numerics.residue), all at once; and rationals, one by one (numerics.interval).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptertool.chain import Chain
from adaptertool.errors import InternalError
from adaptertool.kinds import Array, Size
from adaptertool.numerics.interval import Interval, intervals
from adaptertool.numerics.residue import Residue
from adaptertool.numerics.rounding import Rounder, to_odd

UNIT = 2.0**-53
_AT_ONCE = 1 << 17  # factors of single elements
_MOST_BITS = 1 << 14
_WORD = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def interpolate(before: Array, after: Array, alpha: Any) -> Array:
    """before + α·(after − before); `after` itself where α is 1."""
    return after if alpha == 1 else before + (after - before) * alpha


@dataclass(slots=True)
class Settled:
    """How many elements were decided by exact arithmetic, and how many of them one by one."""

    exactly: int = 0
    one_by_one: int = 0


@dataclass(frozen=True, slots=True)
class Open:
    """The open elements of a block: rows first..last of a tensor with `columns` elements each."""

    chain: Chain
    first: int
    last: int
    columns: int
    size: Size  # of the values in float64, errors included
    alpha: float
    replaced: bool  # the result is a stored tensor itself: its zeros keep their sign
    dtype: torch.dtype  # of the output
    counts: Settled = field(default_factory=Settled)

    def settle(self, where: Tensor, stored: Tensor, values: Tensor | None) -> Tensor:
        """The correctly rounded results at `where` (indices into the block); a NaN or infinity as it comes.

        stored: the block as the base has it; values: the results in float64, or None to compute them here.
        """
        found = torch.empty(len(where), dtype=self.dtype)
        count = max(64, _AT_ONCE // self.chain.width())
        for at in range(0, len(where), count):
            part = where[at : at + count]
            own = None if values is None else values[part]
            self._settle(part.numpy(), stored[part].to(torch.float64), own, found[at : at + count])
        return found

    def _settle(self, where: Any, before: Tensor, values: Tensor | None, found: Tensor) -> None:
        at = (where // self.columns, where % self.columns)
        if values is None:
            start = before.clone().view(-1, 1, 1)
            after = self.chain.pick(torch.from_numpy, self.first, self.last, at, start, exact=False)
            values = interpolate(start, after, self.alpha).view(-1)
        error = self.size.error + 2 * UNIT * (self.size.largest + self.size.error)
        low, high = self._rounded(values - error), self._rounded(values + error)
        found.copy_(low)
        left = torch.nonzero(low.view(_WORD[self.dtype]) != high.view(_WORD[self.dtype])).view(-1)
        left = left[torch.isfinite(values[left])]
        self.counts.exactly += len(left)
        if len(left) and self.chain.is_rational():
            left = self._by_residues(left, at, before, values, low, high, error, found)
        self.counts.one_by_one += len(left)
        for place in left.tolist():
            found[place] = self._by_rationals(at[0][place], at[1][place], before[place].item(), values[place].item())

    def _rounded(self, values: Tensor) -> Tensor:
        out = torch.empty(len(values), dtype=self.dtype)
        Rounder(len(values))(values, out)
        return out

    def _by_residues(
        self,
        left: Tensor,
        at: Any,
        before: Tensor,
        values: Tensor,
        low: Tensor,
        high: Tensor,
        error: float,
        found: Tensor,
    ) -> Tensor:
        """Decide what residues can; returns what is left."""
        index = left.numpy()
        start = Residue.of(before[left].numpy()[:, None, None])
        after = self.chain.pick(Residue.of, self.first, self.last, (at[0][index], at[1][index]), start, exact=True)
        exact = interpolate(start, after, Fraction(self.alpha))
        # The value itself, where it is small: above all exact zeros.
        sign, certain = exact.signs(error)
        zero = (sign == 0) & certain & (values[left].abs().numpy() <= error)
        found[left[zero]] = self._zeros(before[left[zero]], values[left[zero]]).to(self.dtype)
        # The side of the middle, where there is one middle only.
        middle, single = _middles(low[left], high[left])
        side, certain = (exact - Residue.of(middle.numpy()[:, None, None])).signs(2.0 * error)
        decided = certain & single.numpy() & ~zero
        even = low[left].view(_WORD[self.dtype]) & 1 == 0
        side_of = torch.from_numpy(side)
        takes_low = (side_of < 0) | ((side_of == 0) & even)
        result = torch.where(takes_low, low[left], high[left])
        chosen = torch.from_numpy(decided)
        found[left[chosen]] = result[chosen]
        return left[torch.from_numpy(~(decided | zero))]

    def _by_rationals(self, row: int, column: int, before: float, value: float) -> float:
        for exact in self._narrowing(row, column, before):
            if exact.low == exact.high == 0:
                return float(self._zeros(torch.tensor([before]), torch.tensor([value])))
            ends = torch.tensor([to_odd(exact.low), to_odd(exact.high)], dtype=torch.float64)
            low, high = self._rounded(ends).view(_WORD[self.dtype])
            if low == high:
                return float(self._rounded(ends)[0])
        raise InternalError(f"an element cannot be rounded: it is {value} to {_MOST_BITS} bits")

    def _narrowing(self, row: int, column: int, before: float) -> Iterator[Interval]:
        """The exact value, or ever narrower intervals that hold it."""
        alpha = Fraction(self.alpha)
        start, at = intervals(np.full((1, 1, 1), before)), (np.array([row]), np.array([column]))
        bits = 128
        while bits <= _MOST_BITS:
            rational = self.chain.is_rational()
            norms = {} if rational else self.chain.norms_of_base(self.first + row, column, bits)
            if norms is None:
                yield interpolate(*self.chain.line(self.first + row, column, bits), alpha)
            else:
                after = self.chain.pick(intervals, self.first, self.last, at, start, exact=True, norms=norms)
                yield interpolate(start, after, alpha)[0, 0, 0]
            if not norms and norms is not None:
                return
            bits *= 4

    def _zeros(self, before: Tensor, values: Tensor) -> Tensor:
        """Where nothing was added to a zero it keeps its sign; a difference that vanishes is +0."""
        if self.replaced:
            return torch.copysign(torch.zeros_like(values), values)
        return torch.where(before == 0, before, torch.zeros_like(before))


def _middles(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of two neighbours, and whether they are neighbours: −0 and +0 are, with the middle 0."""
    word = _WORD[low.dtype]
    finite = torch.where(high.isinf(), torch.finfo(low.dtype).max, high.double())
    finite = torch.where(low.isinf(), -finite, finite)
    inner = torch.where(low.isinf(), -torch.finfo(low.dtype).max, low.double())
    middle = (inner + finite) / 2
    overflow = low.isinf() | high.isinf()
    half = torch.finfo(low.dtype).max * torch.finfo(low.dtype).eps / (2 - torch.finfo(low.dtype).eps) / 2
    edge = torch.where(high.isinf(), finite + half, inner - half)
    middle = torch.where(overflow, edge, middle)
    steps = _ordered(high.view(word)) - _ordered(low.view(word))
    return middle, steps == 1


def _ordered(bits: Tensor) -> Tensor:
    """Integers in the order of the floats, −0 one below +0."""
    wide = bits.to(torch.int64)
    lowest = -(1 << (8 * bits.element_size() - 1))
    return torch.where(wide < 0, lowest - wide - 1, wide)
