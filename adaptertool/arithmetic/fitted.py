"""Scales of a weight that stays codes, and its codes, for some rows: by float64 with a bound of its error, and by
`Decider` where that leaves more than one possible."""

from __future__ import annotations

import numpy as np

from adaptertool.arithmetic.decided import Decider
from adaptertool.codecs.quantised.lattice import Lattice, levels_of
from adaptertool.codecs.quantised.least import Scales
from adaptertool.numerics.rounding import Array
from adaptertool.records import dataclass
from adaptertool.spec.tally import Fate, sums

_ROUNDED = 2.0**-50  # more than products with a divisor are rounded by, relatively


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a weight.

    values: after all edits, float64 (n, columns), within error + relative·|value|
    index:  which row of scales each row has
    """

    lattice: Lattice
    values: Array
    error: float
    relative: float
    index: Array
    divisor: float
    decider: Decider

    def wide(self, values: Array) -> tuple[Array, Array]:
        """Both ends of the intervals that hold values·divisor."""
        reach = self.error + self.relative * abs(values)
        if self.divisor == 1:
            return values - reach, values + reach
        reach = self.divisor * (reach + _ROUNDED * abs(values))
        return values * self.divisor - reach, values * self.divisor + reach

    def largest(self, values: Array) -> Array:
        """The largest of each block: (rows of scales, blocks of a row)."""
        size, begins = self.lattice.grid.block[1], [0, *(np.flatnonzero(np.diff(self.index)) + 1).tolist()]
        if size < values.shape[1]:
            values = np.maximum.reduceat(values, range(0, values.shape[1], size), axis=1) if size > 1 else values
        else:
            values = values.max(axis=1, keepdims=True)
        found: Array = np.maximum.reduceat(values, begins, axis=0)
        return found


def held(part: Part, sizes: Array) -> Array:
    """Which blocks have all of their numbers held by scales of these sizes (numerators)."""
    below, above = part.lattice.ends
    upper, lower = sizes * (above + part.lattice.reach), sizes * (part.lattice.reach - below)
    (a_least, a_most), (b_least, b_most) = (part.wide(part.largest(one)) for one in (part.values, -part.values))
    surely = (a_most <= upper) & (b_most <= lower)
    open_ = ~(surely | (a_least > upper) | (b_least > lower))
    if open_.any():
        spread = part.lattice.spread(open_, part.index)
        each = [part.lattice.spread(limits, part.index) for limits in (upper, -lower)]
        least, most = part.wide(part.values)
        where = np.flatnonzero(spread & ((most > each[0]) | (least < each[1])))
        over = (part.decider.signs(where, each[0].reshape(-1)[where]) > 0) | (
            part.decider.signs(where, each[1].reshape(-1)[where]) < 0
        )
        lost = np.zeros(spread.shape)
        lost.reshape(-1)[where[over]] = 1
        surely |= open_ & (part.largest(lost) == 0)
    return surely


def least(part: Part, scales: Scales, chosen: Array) -> Array:
    """The places of the smallest scales that hold the numbers of the chosen blocks (a mask), flat."""
    (a_least, a_most), (b_least, b_most) = (part.wide(part.largest(one)) for one in (part.values, -part.values))
    low = scales.least(a_least[chosen], b_least[chosen])
    high = scales.least(a_most[chosen], b_most[chosen])
    blocks = np.argwhere(chosen)
    for number in np.flatnonzero(low < high).tolist():
        row, column = blocks[number].tolist()
        low[number] = _exactly(part, scales, (row, column), (int(low[number]), int(high[number])))
    return low


def _exactly(part: Part, scales: Scales, block: tuple[int, int], places: tuple[int, int]) -> int:
    """The first of the places whose scale holds a block."""
    only = np.zeros((int(part.index[-1]) + 1, part.lattice.grid.shape[1]), bool)
    only[block] = True
    inside = part.lattice.spread(only, part.index)
    below, above = part.lattice.ends
    least, most = part.wide(part.values)
    for place in range(*places):
        size = float(scales.numbers(np.array([place]))[0])
        limits = size * above, size * below
        where = np.flatnonzero(inside & ((most > limits[0]) | (least < limits[1])))
        over = part.decider.signs(where, np.full(len(where), limits[0])) > 0
        under = part.decider.signs(where, np.full(len(where), limits[1])) < 0
        if not over.any() and not under.any():
            return place
    return places[1]


def coded(part: Part, sizes: Array, old: Array, rows: slice) -> tuple[Array, Array]:
    """(codes, numbers·divisor) of some of the rows that are nearest to the values on scales of these sizes: (n,
    columns) each. old: the codes of these rows so far, which stay where they mean the nearest number."""
    lattice, levels = part.lattice, levels_of(part.lattice.table.tobytes())
    each, exact = lattice.spread(sizes, part.index[rows]), part.values[rows]
    values = exact if part.divisor == 1 else exact * part.divisor
    with np.errstate(all="ignore"):
        quotients = np.where(each > 0, values / each, 0.0)
    places = levels.guess(quotients.reshape(-1)).reshape(values.shape).astype(np.int64)
    middles = np.concatenate([[-np.inf], levels.middles, [np.inf]])
    with np.errstate(invalid="ignore"):
        below, above = middles[places] * each, middles[places + 1] * each
    least, most = part.wide(exact)
    where = np.flatnonzero(~((below < least) & (most < above)) & (each > 0))
    if len(where):
        begin = rows.start * values.shape[1]
        places.reshape(-1)[where] = part.decider.nearest(levels, where + begin, each.reshape(-1)[where])
    numbers = levels.values[places]
    codes = np.where((numbers == lattice.table[old]) | (each == 0), old, levels.codes[places])
    return codes, numbers * each


def fate_of(some: Part, values: Array, numbers: tuple[Array, Array], changed: Array) -> Fate:
    """What became of numbers that were to be `values`. numbers: before and now, times the divisor"""
    old, new = numbers if some.divisor == 1 else (own / some.divisor for own in numbers)
    delta, step = values - old, new - old
    kept, update = sums(float((step * delta).sum()), float((delta * delta).sum()))
    _, noise = sums(0.0, float(((step - delta) ** 2).sum()))
    return Fate(changed.size, int(np.count_nonzero(changed)), 0, 0, kept, update, noise)
