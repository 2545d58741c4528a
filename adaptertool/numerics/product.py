"""Sums over blocks of floats: the product of two factors, added to rows of a weight, and the squares of such rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from adaptertool.numerics.compiled import FUNCTIONS, address

_DEEPEST = 256  # as in kernel/product.h
_GROUP = 64  # squares are summed in groups, so that fewer roundings follow one another
_PART = 1 << 16  # elements that stay in the cache


def add_product(rows: npt.NDArray[Any], left: npt.NDArray[Any], right: npt.NDArray[Any]) -> None:
    """rows += left @ right, in place. All of one dtype, float32 or float64; (n, columns), (n, r), (r, columns).

    Each element of the product is summed by itself, and added once: BLAS, told to add, may do so after every term,
    which would cost the weight a rounding each.
    """
    (count, columns), rank, size = rows.shape, len(right), rows.itemsize
    call = FUNCTIONS.get(f"add_product_{rows.dtype.str[1:]}")
    if call is not None and rank <= _DEEPEST and _in_rows(rows):
        left, right = np.ascontiguousarray(left, rows.dtype), np.ascontiguousarray(right, rows.dtype)
        factors = address(left, rows.dtype, count * rank), address(right, rows.dtype, rank * columns)
        call(rows.ctypes.data, *factors, count, columns, rows.strides[0] // size, rank)
        return
    step = max(1, _PART // max(columns, 1))
    for first in range(0, count, step):
        part = rows[first : first + step]
        part += left[first : first + step] @ right


def squares(rows: npt.NDArray[Any], left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The sum of squares of each row of rows + left @ right, float64 (n, 1). Shapes are those of `add_product`; `rows`
    may be float32 where the factors are float64.

    `roundings` bounds how many follow one another in the sum.
    """
    (count, columns), rank = rows.shape, len(right)
    call = FUNCTIONS.get(f"squares_{rows.dtype.str[1:]}")
    if call is not None and rank <= _DEEPEST and _in_rows(rows):
        left, right = np.ascontiguousarray(left, np.float64), np.ascontiguousarray(right, np.float64)
        factors = address(left, np.float64, count * rank), address(right, np.float64, rank * columns)
        sums = np.empty((count, 8))
        call(rows.ctypes.data, *factors, sums.ctypes.data, count, columns, rows.strides[0] // rows.itemsize, rank)
        total: npt.NDArray[Any] = sums.sum(1, keepdims=True)
        return total
    total = np.empty((count, 1))
    step = max(1, _PART // max(columns, 1))
    for first in range(0, count, step):
        part = slice(first, first + step)
        whole = rows[part].astype(np.float64)
        add_product(whole, left[part], right)
        whole *= whole
        total[part] = np.add.reduceat(whole, range(0, columns, _GROUP), axis=1).sum(1, keepdims=True)
    return total


def roundings(length: int) -> int:
    """How many roundings follow one another in a sum of `length` squares, at most: within a group, and of the
    groups."""
    return 2 * _GROUP + length // 32


def _in_rows(rows: npt.NDArray[Any]) -> bool:
    """Whether the elements of a row follow one another in memory."""
    return rows.size > 0 and rows.strides[1] == rows.itemsize and rows.strides[0] >= rows.itemsize * rows.shape[1]
