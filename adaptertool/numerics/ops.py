"""What a number system can do, as a record of functions: the formulas of kinds are written once and run in each.

+, −, and the product with one number are operators in every system; what differs, or is lacking in some, stands here.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from adaptertool.numerics import blockwise, product
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.dyadic import Dyadic
from adaptertool.numerics.interval import intervals
from adaptertool.numerics.modular import Residue
from adaptertool.records import dataclass

Array = Any  # of numpy or torch: floats, or Interval; or DoubleDouble, Residue, or Dyadic

TIMES, DIVIDE, BLOCKWISE = OPERATIONS = ("times", "divide", "blockwise")  # what a system may lack

_PART = 1 << 17  # elements that stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Ops:
    """The operations of one number system. One that is None it cannot do: it is passed over for what needs it.

    array:        floats (numpy, float64), exactly, as numbers of this system
    add_product:  (rows, left, right): rows += left @ right, in place; (n, columns), (n, r), (r, columns)
    plus_product: the same, returned; `rows` stay as they are
    squares:      (rows, left, right) -> (n, 1), the sum of squares of each row of rows + left @ right
    times:        element by element, of shapes that broadcast
    divide:       the same, by positive numbers
    blockwise:    (rows, high, low): every b columns of rows (n, columns) times a matrix of their own, returned
                  (numerics.blockwise); high and low are floats in every system
    root:         the square root of each, to the precision of the system; None where that is a matter of choice
    parts:        (rows) -> slices of rows that together are all of them, to be worked on one after another
    columns:      the same of columns, where these lie in memory as rows do else; None where they do not
    """

    name: str
    exact: bool  # no result is rounded, or each says by how much
    array: Callable[[Any], Array]
    add_product: Callable[[Array, Array, Array], None]
    plus_product: Callable[[Array, Array, Array], Array]
    squares: Callable[[Array, Array, Array], Array]
    times: Callable[[Array, Array], Array] | None = None
    divide: Callable[[Array, Array], Array] | None = None
    blockwise: Callable[[Array, Array, Array], Array] | None = None
    root: Callable[[Array], Array] | None = None
    parts: Callable[[Array], Iterator[slice]] = lambda _: iter((slice(None),))
    columns: Callable[[Array], Iterator[slice] | None] = lambda _: None

    def can(self, operations: frozenset[str]) -> bool:
        """Whether the number system has all of these OPERATIONS."""
        return all(getattr(self, name) is not None for name in operations)


def _same(numbers: Array) -> Array:
    return numbers


def _add_product(rows: Array, left: Array, right: Array) -> None:
    rows += left @ right


def _plus_product(rows: Array, left: Array, right: Array) -> Array:
    return left @ right + rows


def _squares(rows: Array, left: Array, right: Array) -> Array:
    whole = left @ right + rows
    return (whole * whole).sum(1)[:, None]


def _add_product_of_pairs(rows: DoubleDouble, left: DoubleDouble, right: DoubleDouble) -> None:
    if len(rows.shape) == 2:
        rows.add_product(left, right)
    else:
        rows += left @ right


def _pairs_plus_product(rows: DoubleDouble, left: DoubleDouble, right: DoubleDouble) -> DoubleDouble:
    return rows.plus_product(left, right) if len(rows.shape) == 2 else rows + left @ right


def _squares_of_pairs(rows: DoubleDouble, left: DoubleDouble, right: DoubleDouble) -> DoubleDouble:
    whole = _pairs_plus_product(rows, left, right) if right.shape[0] else rows
    return whole.squares().reshape(-1, 1)


def _block_plus_product(rows: Array, left: Array, right: Array) -> Array:
    whole = rows.copy()
    product.add_product(whole, left, right)
    return whole


def _cached(rows: Array) -> Iterator[slice]:
    step = max(1, _PART // max(rows.shape[1], 1))
    return (slice(first, first + step) for first in range(0, len(rows), step))


def _cached_columns(rows: Array) -> Iterator[slice] | None:
    return _cached(rows.T) if rows.strides[0] < rows.strides[1] else None


# Rows of float32 or float64, (n, columns), by the kernel or BLAS; squares are float64
BLOCKS = Ops(
    name="blocks",
    exact=False,
    array=_same,
    add_product=product.add_product,
    plus_product=_block_plus_product,
    squares=product.squares,
    times=operator.mul,
    divide=operator.truediv,
    blockwise=blockwise.of_blocks,
    root=np.sqrt,
    parts=_cached,
    columns=_cached_columns,
)
# By operators alone. Floats: batches of single elements (n, 1, 1) of numpy, and tensors of torch
FLOATS = Ops(
    name="floats",
    exact=False,
    array=_same,
    add_product=_add_product,
    plus_product=_plus_product,
    squares=_squares,
    times=operator.mul,
    divide=operator.truediv,
    blockwise=blockwise.of_floats,
    root=np.sqrt,
)
# Sums of two float64 with a bound of their error, for many elements at once: rows (n, columns), and batches
DOUBLES = dataclasses.replace(
    FLOATS,
    name="doubles",
    exact=True,
    array=DoubleDouble.of,
    add_product=_add_product_of_pairs,
    plus_product=_pairs_plus_product,
    squares=_squares_of_pairs,
    blockwise=blockwise.of_pairs,
    root=DoubleDouble.sqrt,
)
# Modulo 2^64: for many elements at once; a residue has no inverse
RESIDUES = dataclasses.replace(
    FLOATS, name="residues", exact=True, array=Residue.of, divide=None, blockwise=None, root=None
)
# Integers of any size times a power of two (numerics.dyadic)
DYADICS = dataclasses.replace(RESIDUES, name="dyadics", array=Dyadic.of)
# Arrays of intervals between rationals (numerics.interval)
INTERVALS = dataclasses.replace(
    FLOATS, name="intervals", exact=True, array=intervals, blockwise=blockwise.of_intervals, root=None
)
SYSTEMS: tuple[Ops, ...] = (BLOCKS, FLOATS, DOUBLES, RESIDUES, DYADICS, INTERVALS)
