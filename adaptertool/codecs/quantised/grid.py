"""Scales that each belong to a block of a weight: of some rows and columns, to a row, or to all of it."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from adaptertool.codecs.quantised.misfit import misfit
from adaptertool.codecs.quantised.tables import numbers
from adaptertool.errors import by
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import ReadStored, Ref

Block = tuple[int, int]  # rows and columns


class Grid(NamedTuple):
    """Matrices (rows, columns), one after another, whose blocks each have a scale: `shape` of them in each matrix. At
    the ends blocks may be smaller."""

    ref: Ref  # the scales
    rows: int  # of a matrix
    columns: int
    block: Block
    shape: tuple[int, int]

    def scales(self, read: ReadStored, first: int, last: int) -> tuple[Array, Array]:
        """The scales of rows first..last, float64 (m, groups), and which row of them each has, int32."""
        places = np.arange(first, last)
        places = places // self.rows * self.shape[0] + places % self.rows // self.block[0]
        low, high = (int(places[0]), int(places[-1]) + 1) if last > first else (0, 0)
        scales = numbers(read(self.ref, self.shape[1], low, high), self.ref.spec.dtype)
        return scales, (places - low).astype(np.int32)


def grid_of(ref: Ref, shape: tuple[int, ...], blocks: Collection[Block], where: str, *, strict: bool = False) -> Grid:
    """How scales belong to a weight of that shape: (..., rows, columns). blocks: those that may be meant, as the config
    or the format has them; one scale for a matrix, and one for a row, tell themselves, if not `strict` where there are
    blocks.

    Raises MismatchError where the scales are not as many as such blocks, or nothing tells how large these are. where:
    the file that says how large they are
    """
    *lead, rows, columns = shape
    scales, whole = ref.spec.shape, math.prod(lead) * rows
    counts = [_count((rows, columns), block) for block in blocks]
    may_be = [count for count in ((1, 1), (rows, 1)) if not strict or not blocks or count in counts]
    own = scales[len(lead) :] if scales[: len(lead)] == tuple(lead) else None
    if (1, 1) in may_be and math.prod(scales) == 1:
        return Grid(ref, whole, columns, (whole, columns), (1, 1))
    if (1, 1) in may_be and lead and own in ((), (1,), (1, 1)):
        return Grid(ref, rows, columns, (rows, columns), (1, 1))
    if (rows, 1) in may_be and own in ((rows,), (rows, 1)):
        return Grid(ref, rows, columns, (1, columns), (rows, 1))
    fits = {block for block in blocks if own == _count((rows, columns), block)}
    if len(fits) == 1:
        (block,) = fits
        return Grid(ref, rows, columns, block, _count((rows, columns), block))
    said = " or ".join(sorted(map(by, blocks)))
    what = f"but {where} has blocks of {said}, which" if blocks else f"but {where} says no size of blocks, and they"
    return misfit(ref, f"{what} do not make so many scales for a weight of {by(shape)}")


def _count(shape: tuple[int, int], block: Block) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])
