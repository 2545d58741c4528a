"""Codes with scales as numbers: W = (table[code] − zero)·scale / divisor, in float64, or rounded to what is stored.

By the kernel, or in numpy: the same bits. Both take the operations of float64 in this order, and round the result of
these to nearest; whether it is exact is for those to say who hand in the numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adaptertool.numerics.compiled import FUNCTIONS, address
from adaptertool.numerics.rounding import STORED, Array, round_within


class Coded(NamedTuple):
    """Rows of codes, and what they mean.

    codes: uint8 (n, bytes), one or two codes a byte
    table: float64 (256,), or (512,): what the two codes of each byte mean, one after the other
    which: int32 (n,), the row of `scales` for each row
    scales: float64 (m, groups); zeros: the same, or None
    size: columns that have a scale in common; the last group of a row may have fewer
    """

    codes: Array
    table: Array
    which: Array
    scales: Array
    size: int
    columns: int
    zeros: Array | None = None
    divisor: float = 1.0


def decoded(coded: Coded, dtype: str = "F64", out: Array | None = None) -> Array:
    """The numbers (n, columns), as `dtype` stores them: BF16, F16, F32 or F64. In `out`, of so many, or in a new
    array."""
    rows, each = len(coded.codes), len(coded.table) // 256
    call = FUNCTIONS.get(f"decode_{dtype}")
    even = each == 1 or (coded.size % 2 == 0 and coded.columns % 2 == 0)
    if call is None or not even:
        return _by_numpy(coded, dtype, out)
    groups = -(-coded.columns // coded.size)
    assert coded.scales.shape[1] == groups
    assert not rows or 0 <= coded.which.min() <= coded.which.max() < len(coded.scales)
    out = np.empty((rows, coded.columns), STORED[dtype]) if out is None else out
    count = coded.scales.size
    zeros = None if coded.zeros is None else address(coded.zeros, np.float64, count)
    call(
        address(coded.codes, np.uint8, rows * coded.columns // each),
        address(coded.table, np.float64, 256 * each),
        each,
        address(coded.which, np.int32, rows),
        address(coded.scales, np.float64, count),
        zeros,
        coded.divisor,
        address(out, STORED[dtype], rows * coded.columns),
        rows,
        coded.columns,
        coded.size,
    )
    return out.reshape(rows, coded.columns)


def _by_numpy(coded: Coded, dtype: str, out: Array | None) -> Array:
    pairs = coded.table if len(coded.table) == 256 else coded.table.view(np.complex128)  # two numbers are one
    values = np.take(pairs, coded.codes, mode="clip").view(np.float64)[:, : coded.columns]
    values = np.ascontiguousarray(values)
    if coded.zeros is not None:
        _of_groups(np.subtract, values, coded.zeros[coded.which], coded.size)
    with np.errstate(all="ignore"):
        _of_groups(np.multiply, values, coded.scales[coded.which], coded.size)
        if coded.divisor != 1:
            values /= coded.divisor
    if dtype == "F64" and out is None:
        return values
    out = np.empty(values.shape, STORED[dtype]) if out is None else out.reshape(values.shape)
    round_within(values.reshape(-1), 0.0, 0.0, dtype, out.reshape(-1))
    return out


def _of_groups(how: np.ufunc, values: Array, numbers: Array, size: int) -> None:
    columns, groups = values.shape[1], numbers.shape[1]
    if columns == groups * size:
        parts = values.reshape(len(values), groups, size)
        how(parts, numbers[:, :, None], out=parts)
    else:
        how(values, np.repeat(numbers, size, axis=1)[:, :columns], out=values)
