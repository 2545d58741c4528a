"""Rows of a matrix, every b columns times a matrix (b, b) of their own, in several number systems.

rows (n, columns); high and low (columns, b), float64: one matrix below the other, each the exact sum of both.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.numerics.compiled import FUNCTIONS, address
from adaptertool.numerics.digits import Digits
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.dyadic import Dyadic
from adaptertool.numerics.interval import Interval

_SMALL = 16  # columns of a block, up to which BLAS takes longer
Array = Any  # of numpy or torch: floats, or Interval


def of_floats(rows: Array, high: Array, low: Array | None = None) -> Array:  # noqa: ARG001
    """By `high` alone, as one product of batches: of numpy, also of objects, or torch."""
    (columns, wide), count = high.shape, rows.shape[0]
    blocks = rows.reshape(count, columns // wide, wide).swapaxes(0, 1) @ high.reshape(-1, wide, wide)
    return blocks.swapaxes(0, 1).reshape(rows.shape)


def of_blocks(rows: Array, high: Array, low: Array | None = None) -> Array:
    """The same of numpy's floats; where columns lie in memory as rows do else, so do those of the result."""
    (columns, wide), count, call = high.shape, rows.shape[0], FUNCTIONS.get("blockwise")
    in_rows = rows.strides[1] == rows.itemsize and rows.strides[0] >= rows.itemsize * columns
    if call is not None and in_rows and wide <= _SMALL and rows.dtype == high.dtype == np.float64:
        found, blocks = np.empty((count, columns)), np.ascontiguousarray(high)
        given = rows.ctypes.data, rows.strides[0] // rows.itemsize, address(blocks, np.float64, columns * wide)
        call(*given, found.ctypes.data, count, columns, wide)
        return found
    if rows.strides[0] >= rows.strides[1]:
        return of_floats(rows, high, low)
    turned = high.reshape(-1, wide, wide).swapaxes(1, 2) @ rows.T.reshape(columns // wide, wide, count)
    made: Array = turned.reshape(columns, count).T
    return made


def of_pairs(rows: DoubleDouble, high: Array, low: Array) -> DoubleDouble:
    """By both parts, each product with the bound of its error."""
    (columns, wide), made, more = high.shape, rows.copy(), bool(low.any())
    for first in range(0, columns, wide):
        part = slice(first, first + wide)
        some = rows[:, part]
        product = some @ DoubleDouble.of(high[part])
        made[:, part] = product + some @ DoubleDouble.of(low[part]) if more else product
    return made


def of_digits(rows: Digits, high: Array, low: Array) -> Digits:
    """By both parts together, each product exact."""
    made: Digits = of_floats(rows, Digits.of(high) + Digits.of(low))
    return made


def of_intervals(rows: Array, high: Array, low: Array) -> Array:
    """Exactly, in integers: rationals are put over one divisor. The ends of a sum are sums of ends, by the signs."""
    exact = Dyadic.of(high) + Dyadic.of(low)
    divisor = math.lcm(*(end.denominator for number in rows.flat for end in (number.low, number.high)))
    below = np.frompyfunc(lambda number: int(number.low * divisor), 1, 1)(rows)
    above = np.frompyfunc(lambda number: int(number.high * divisor), 1, 1)(rows)
    up, down = np.maximum(exact.bits, 0), np.minimum(exact.bits, 0)
    unit = Fraction(2) ** exact.exponent / divisor
    ends = of_floats(below, up) + of_floats(above, down), of_floats(above, up) + of_floats(below, down)
    made: Array = np.frompyfunc(lambda least, most: Interval(least * unit, most * unit), 2, 1)(*ends)
    return made
