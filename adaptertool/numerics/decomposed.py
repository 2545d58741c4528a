"""What a whole matrix is decomposed into by LAPACK, in float64, for factors that are made of a base's weight.

The last bits may differ between machines: between those of one kind they do not, where LAPACK runs on one thread
(threadpool_limits).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adaptertool.numerics.rounding import Array, in_16_bits

_OFF = 2.0**-21  # of the largest singular value: by how much float32 may miss one; LAPACK's does by a quarter of it
_MATTERS = 2.0**-8  # of the norm of a matrix: the last bit of BF16
_NEAREST = 256  # singular values on either side that are looked at
_LEAST = 1e-12  # columns no longer than this are 0
_ILL = 2.0**33  # conditions from which on float32 does not hold what solves equations


class Smallest(NamedTuple):
    """The n smallest singular values of a matrix with their vectors, left (out, n) @ right (n, in).

    told: whether float32 tells these from all others, or it matters little which they are: whether what float32 takes
    for left @ right differs by no more than 2^-8 of the norm of the matrix
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
    parts = [in_16_bits(part, dtype) for part in (left[:, kept:], values[kept:], right[kept:])]
    told = _mixed(values, kept) <= _MATTERS * float(np.sqrt((values * values).sum()))
    return Smallest(parts[0], parts[1][:, None] * parts[2], told)


def change_without(rows: Array, left: Array, right: Array, dtype: str) -> Array:
    """What rows (n, in) change by when left (n, r) @ right (r, in) is taken from them, and what stays is rounded to
    `dtype`, where that has 16 bits. The products are taken away one after the other, so that the sums are the same
    whatever rows there are."""
    stays = rows.copy()
    for column, row in zip(left.T, right, strict=True):
        stays -= column[:, None] * row
    change: Array = in_16_bits(stays, dtype) - rows
    return change


def _mixed(values: Array, kept: int) -> float:
    """How far, in norm, the part of a matrix that belongs to its singular values from the `kept`-th on may be off
    where these are found in float32.

    An error E of the matrix turns the i-th vectors into the j-th by about |E| / (σ[i] − σ[j]), and by all at most, as
    first-order perturbation has it (G. Stewart, J.-G. Sun, Matrix Perturbation Theory, 1990, chapter V); so σ[i]·u·vᵀ
    moves from one part into the other by so much of √2·σ[i]. |E| is taken as 2^-21·σ[0].
    """
    above, below = values[max(kept - _NEAREST, 0) : kept], values[kept : kept + _NEAREST]
    with np.errstate(divide="ignore", invalid="ignore"):
        turned = np.nan_to_num(_OFF * values[0] / (above[:, None] - below), nan=0.0, posinf=1.0)
    share = np.minimum((np.minimum(turned, 1.0) ** 2).sum(1), 1.0)
    return float(np.sqrt(2 * (share * above**2).sum()))


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
