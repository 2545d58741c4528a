"""Tells scales that are larger than what they hold needs: each code on them is the nearest, and says next to nothing.

With v the exact numbers of a block and s the smallest scale that holds them, of all numbers, codes on s err by
d·s / √12 as a rule, d being how far the numbers of the table are apart there. Rules in use take scales of up to 2·s
(powers of two, rounded up), and so err by a step d·s at most. What errs by more than that, together, was made on scales
that are too large.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adaptertool.arithmetic.block import Block
from adaptertool.codecs.quantised.lattice import Lattice, levels_of
from adaptertool.codecs.quantised.least import Scales
from adaptertool.numerics.rounding import Array

_FUZZ = 2.0**-40  # of numbers that were computed in float64


class Cut(NamedTuple):
    """How rows are cut into blocks with a scale each: where these begin."""

    rows: Array
    columns: Array
    index: Array  # of each row, the block

    def most(self, values: Array) -> Array:
        """The largest of each block, (blocks down, blocks of a row)."""
        found: Array = np.maximum.reduceat(np.maximum.reduceat(values, self.rows, axis=0), self.columns, axis=1)
        return found

    def all(self, true: Array) -> Array:
        """Whether it is so of all of a block."""
        return np.logical_not(self.most(np.logical_not(true)))


def cut_of(lattice: Lattice, block: Block) -> Cut | None:
    """The blocks of some rows of a weight; None where they are not whole there."""
    grid = lattice.grid
    rows, down = grid.rows, grid.block[0]
    if block.first % rows % down or (block.last % rows and block.last % rows % down):
        return None
    _, _, index = lattice.blocks(block.first, block.last)
    begins = np.flatnonzero(np.diff(index, prepend=-1))
    return Cut(begins, np.arange(0, grid.columns, grid.block[1]), index)


def steps(lattice: Lattice, cut: Cut, exact: Array) -> Array:
    """How far numbers of the table are apart at each number, on the smallest of all scales that hold its block."""
    (below, above), levels = lattice.ends, levels_of(lattice.table.tobytes())
    size = lattice.spread(np.maximum(cut.most(exact) / above, cut.most(-exact) / -below), cut.index)
    gaps = np.diff(levels.values)
    wide = np.maximum(np.append(gaps, gaps[-1]), np.insert(gaps, 0, gaps[0]))
    with np.errstate(all="ignore"):
        places = levels.guess(np.where(size > 0, exact / size, 0).reshape(-1)).reshape(exact.shape)
    found: Array = wide[places] * size
    return found


def is_least(lattice: Lattice, cut: Cut, exact: Array, scales: Array, sizes: tuple[float, float]) -> Array:
    """Whether the scale of each block is the smallest of its dtype that holds it, as far as float64 tells.

    scales: of each number; sizes: factor and divisor of the lattice.
    """
    factor, divisor = sizes
    order, own = Scales(lattice, factor), cut.most(scales) * divisor
    above, below = (cut.most(one).reshape(-1) * divisor for one in (exact, -exact))
    low, high = (
        order.numbers(order.least(above * wide, below * wide)).reshape(own.shape) * wide
        for wide in (1 - _FUZZ, 1 + _FUZZ)
    )
    found: Array = (own >= low) & (own <= high)
    return found
