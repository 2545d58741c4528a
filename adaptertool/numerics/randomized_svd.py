"""The largest singular values and vectors of a matrix that is read in blocks of rows, and what an approximation leaves.

Subspace iteration from a random start, a few columns wider than what is asked for: each pass over the rows makes D·V
and Dᵀ·D·V, whose columns are the next V (N. Halko, P.-G. Martinsson, J. Tropp, "Finding structure with randomness",
SIAM Review 2011, algorithms 4.4 and 5.1). It goes on until the part that is captured hardly grows. A matrix that is
hardly larger than the sketch is decomposed whole. All in float64; memory holds a few blocks and the sketches,
(rows + columns)·width each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from blake3 import blake3

from adaptertool.numerics.lowrank import Factors, Svd, kept, qr, svd_of_product
from adaptertool.numerics.rounding import Array
from adaptertool.spec.choices import RankChoice

_START = 16  # the rank looked for where it is not known
_MORE = 10  # columns of a sketch beyond the rank, at least; half of the rank where that is more
_PASSES = 12  # at most
_GAIN = 5e-3  # another pass is made while the square of what is left shrinks by this share
_NOISE = 1e-14  # of squares added up; below it nothing is seen of what is left


class Matrix(Protocol):
    """Rows that can be read again and again."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """The blocks (first row, rows), rows float64 (n, wide); valid until the next, and may be changed."""


class Leading(NamedTuple):
    """The leading part of a matrix D.

    svd: its factors; behind its values stands the Frobenius norm of all the rest, so that `lowrank.errors` of the
         values is relative to D
    reliable: so many of the values are those of the whole matrix, as far as the iteration goes
    """

    svd: Svd
    reliable: int

    @property
    def available(self) -> int:
        """The rank up to which there are factors."""
        return len(self.svd.right)


def leading(matrix: Matrix, cut: RankChoice, seed: str) -> Leading:
    """As much of the matrix as `cut` asks for. The random start depends on `seed` alone."""
    rank = cut.rank or _START
    while True:
        found = leading_of_rank(matrix, rank, seed)
        if cut.rank is not None or found.reliable == min(matrix.shape):
            return found
        if kept(found.svd.values, cut) <= found.reliable:
            return found
        rank *= 2


def leading_of_rank(matrix: Matrix, rank: int, seed: str) -> Leading:
    """The `rank` largest singular values and their vectors; all, where that are nearly so many."""
    width, (_, wide) = rank + max(_MORE, rank // 2), matrix.shape
    if 2 * width >= min(matrix.shape):
        return _whole(matrix)
    random = np.random.Generator(np.random.PCG64(int.from_bytes(blake3(seed.encode()).digest(16))))
    right, before, passes = qr(random.standard_normal((wide, width)))[0], 0.0, 0
    while True:
        left, back, square = _both(matrix, right)
        found = float(np.square(np.linalg.svd(qr(left)[1], compute_uv=False)[:rank]).sum())
        passes += 1
        if passes == _PASSES or found - before <= _GAIN * (square - found) + _NOISE * square:
            break
        right, before = qr(back)[0], found
    svd = svd_of_product(left, right.T)
    rest = math.ldexp(math.sqrt(max(0.0, square - float(np.square(left).sum()))), -svd.exponent)
    return Leading(svd._replace(values=np.append(svd.values, rest)), rank)


def left_over(matrix: Matrix, factors: Factors) -> tuple[float, float]:
    """(‖D − B·A‖, ‖D‖), Frobenius norms, added up over all elements: nothing is estimated. factors: B (high, r) and A
    (r, wide), float64."""
    b, a = factors
    rest = square = 0.0
    for first, rows in matrix.blocks():
        square += _square(rows)
        rows -= b[first : first + len(rows)] @ a
        rest += _square(rows)
    return math.sqrt(rest), math.sqrt(square)


def _whole(matrix: Matrix) -> Leading:
    rows = np.concatenate([block.copy() for _, block in matrix.blocks()])
    high, wide = rows.shape
    svd = svd_of_product(rows, np.eye(wide)) if high >= wide else svd_of_product(np.eye(high), rows)
    return Leading(svd._replace(values=np.append(svd.values, 0.0)), min(high, wide))


def _both(matrix: Matrix, right: Array) -> tuple[Array, Array, float]:
    """D·V, Dᵀ·D·V and ‖D‖², in one pass."""
    left, back, square = np.empty((matrix.shape[0], right.shape[1])), np.zeros(right.shape), 0.0
    for first, rows in matrix.blocks():
        some = left[first : first + len(rows)]
        np.matmul(rows, right, out=some)
        back += rows.T @ some
        square += _square(rows)
    return left, back, square


def _square(rows: Array) -> float:
    flat = rows.reshape(-1)
    return float(flat @ flat)
