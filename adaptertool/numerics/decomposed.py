"""What a whole matrix is decomposed into by LAPACK, in float64, for factors that are made of a base's weight.

The last bits may differ between machines: between those of one kind they do not, where LAPACK runs on one thread
(threadpool_limits).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adaptertool.numerics.rounding import Array, in_16_bits

_TOLD = 2.0**-20  # of the largest singular value: what float32 tells apart
_LEAST = 1e-12  # columns no longer than this are 0
_ILL = 2.0**33  # conditions from which on float32 does not hold what solves equations


class Smallest(NamedTuple):
    """The n smallest singular values of a matrix with their vectors, left (out, n) @ right (n, in).

    told: whether float32 tells the smallest of all others from the largest of these
    """

    left: Array
    right: Array
    told: bool


def smallest(matrix: Array, count: int, dtype: str) -> Smallest | None:
    """The `count` smallest singular values of a matrix (out, in), and their vectors, in `dtype` where that has 16 bits.
    None where the matrix is not finite."""
    try:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        return None
    kept = len(values) - count
    above = values[kept - 1] if kept else np.inf
    told = above - values[kept] > _TOLD * values[0] or above <= _TOLD * values[0]
    parts = [in_16_bits(part, dtype) for part in (left[:, kept:], values[kept:], right[kept:])]
    return Smallest(parts[0], parts[1][:, None] * parts[2], bool(told))


def unit_columns(matrix: Array, by: Array, dtype: str) -> Array | None:
    """The columns of matrix @ inv(by).T (out, n), each of length 1, or 0 where it is hardly longer: rounded to float32,
    and then to `dtype` where that has 16 bits. None where `by` (n, n) has no inverse, or one that rounding makes."""
    try:
        found, inverse = np.linalg.solve(by, matrix.T), np.linalg.inv(by)
    except np.linalg.LinAlgError:
        return None
    if not abs(inverse).sum(0).max() * abs(by).sum(0).max() < _ILL:
        return None
    sizes = np.sqrt((found * found).sum(1))
    seen = sizes > _LEAST
    units = np.where(seen[:, None], found / np.where(seen, sizes, 1.0)[:, None], 0.0)
    return in_16_bits(units.T.astype(np.float32).astype(np.float64), dtype)
