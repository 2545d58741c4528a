"""The largest singular values and vectors of a matrix that is read in blocks of rows.

Block Lanczos from a random start as wide as the rank that is asked for: each pass over the rows makes D·V and Dᵀ·D·V,
whose part that is orthogonal to all V so far is the next V. The best that is in the span of all of them is taken
(C. Musco, C. Musco, "Randomized block Krylov methods for stronger and faster approximate singular value
decomposition", 2015): half as many passes lead as far as with the last V alone. It goes on until the part that is
captured hardly grows. In float32, and from there in float64 where so little is left that float32 does not see it. A
matrix that is hardly larger than the sketch is decomposed whole. Memory holds a few blocks and the sketches,
(rows + columns)·rank for each pass.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3

from adaptertool.numerics.held import Matrix, Products
from adaptertool.numerics.lowrank import Svd, kept, qr, svd_of_product
from adaptertool.numerics.rounding import Array
from adaptertool.spec.choices import RankChoice

_START = 16  # the rank looked for where it is not known, and the columns of a start at least: fewer take as long
_MORE = 10  # values beyond the rank that are told, at least; half of the rank where that is more
_PASSES = 12  # at most
_GAIN = 5e-3  # another pass is made while the square of what is left shrinks by this share,
_LEFT = 2e-3  # and as long as it may shrink by this share in all passes to come, as far as the last ones tell
_NOISE = 1e-14  # of squares added up; below it nothing is seen of what is left
_SEEN = 1e-4  # the same of float32, with digits to spare


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


def leading(held: Products, cut: RankChoice, seed: str) -> Leading:
    """As much of the matrix as `cut` asks for. The random start depends on `seed` alone."""
    rank = cut.rank or _START
    while True:
        found = leading_of_rank(held, rank, seed)
        if cut.rank is not None or found.reliable == min(held.matrix.shape):
            return found
        if kept(found.svd.values, cut) <= found.reliable:
            return found
        rank *= 2


def leading_of_rank(held: Products, rank: int, seed: str) -> Leading:
    """The `rank` largest singular values and their vectors; all, where that are nearly so many."""
    width, (_, wide) = rank + max(_MORE, rank // 2), held.matrix.shape
    if 2 * width >= min(held.matrix.shape):
        return _whole(held.matrix)
    random = np.random.Generator(np.random.PCG64(int.from_bytes(blake3(seed.encode()).digest(16))))
    start = random.standard_normal((max(rank, _START), wide))
    found = _krylov(held, start, rank, width, np.float32) if held.narrow() else None
    if found is None or found.rest <= _SEEN:
        found = _krylov(held, start if found is None else found.right, rank, width, np.float64)
        assert found is not None
    svd = svd_of_product(found.left.astype(np.float64), found.right.astype(np.float64))
    norm = math.ldexp(math.sqrt(held.square()), -svd.exponent)
    rest = math.sqrt(max(0.0, norm * norm - float(np.square(svd.values).sum())))
    return Leading(svd._replace(values=np.append(svd.values, rest)), rank)


class _Captured(NamedTuple):
    """The best approximation of D in a subspace, left @ right."""

    left: Array  # (high, width)
    right: Array  # (width, wide), orthonormal rows
    rest: float  # the share of ‖D‖² that the rank which was asked for leaves


def _krylov(held: Products, start: Array, rank: int, width: int, dtype: Any) -> _Captured | None:
    """Block Lanczos in `dtype`, from the rows of `start` (n, wide); None where the numbers are beyond its range."""
    block = basis = _orthonormal(start, start[:0]).astype(dtype)
    lefts, gram, captured, last = np.empty((held.matrix.shape[0], 0), dtype), np.empty((0, 0)), [0.0], False
    while True:
        left, back = held.times(block, back=not last)
        if dtype == np.float32 and not held.narrow():
            return None
        gram = _bordered(gram, lefts, left)
        lefts = np.concatenate([lefts, left], axis=1)
        values, vectors = np.linalg.eigh(gram)
        captured.append(float(values[-rank:].sum()))
        full = len(basis) + len(block) > min(held.matrix.shape) or len(captured) > _PASSES
        done, last = _nearly_all(captured, held.square())
        if full or done:
            break
        if back is None:
            _, back = held.times(block, back=True)
            assert back is not None
        block = _orthonormal(back, basis).astype(dtype)
        basis = np.concatenate([basis, block])
    best = vectors[:, : -width - 1 : -1].astype(dtype)
    return _Captured(lefts @ best, best.T @ basis, 1 - captured[-1] / held.square() if held.square() else 0.0)


def _nearly_all(captured: list[float], square: float) -> tuple[bool, bool]:
    """Whether nearly all that this rank can hold is captured; and whether it will be after another pass.

    captured: squares of what was held after each pass, of `square`. What passes gain shrinks by a factor that itself
    shrinks, so what is to come is less than the geometric series of the last two.
    """
    if len(captured) < 3:
        return False, False
    rest = square - captured[-1]
    before, gain = captured[-2] - captured[-3], captured[-1] - captured[-2]
    if gain <= _GAIN * rest + _NOISE * square:
        return True, False
    if len(captured) < 4 or before <= gain:
        return False, False
    share = gain / before
    to_come = gain * share / (1 - share)
    return to_come <= _LEFT * rest, to_come * share <= _LEFT * rest


def _bordered(gram: Array, lefts: Array, left: Array) -> Array:
    """The products of all columns with each other, float64, where `left` comes behind `lefts`."""
    side = (lefts.T @ left).astype(np.float64)
    return np.block([[gram, side], [side.T, (left.T @ left).astype(np.float64)]])


def _orthonormal(rows: Array, basis: Array) -> Array:
    """Orthonormal rows of the span of `rows`, without what lies in that of `basis`; float64. Once more where hardly
    more than rounding was left, and twice is enough (B. Parlett, "The symmetric eigenvalue problem", 1980)."""
    little = np.finfo(basis.dtype).eps ** 0.5  # its square is rounding: rows from which it is taken stay orthonormal
    for _ in range(2):
        rows = rows - (rows @ basis.T) @ basis
        rows = np.ascontiguousarray(qr(rows.T.astype(np.float64))[0].T)
        if np.abs(inside := rows.astype(basis.dtype) @ basis.T).max(initial=0.0) < little:
            break
    orthonormal: Array = rows - inside @ basis
    return orthonormal


def _whole(matrix: Matrix) -> Leading:
    rows = np.concatenate([block.copy() for _, block in matrix.blocks()])
    high, wide = rows.shape
    svd = svd_of_product(rows, np.eye(wide)) if high >= wide else svd_of_product(np.eye(high), rows)
    return Leading(svd._replace(values=np.append(svd.values, 0.0)), min(high, wide))
