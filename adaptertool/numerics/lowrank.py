"""Products of factors, B·A, and their singular values, without ever forming the out × in matrix. In float64.

QR of B and of Aᵀ leaves a core of at most r × r, whose SVD is that of the product (T. Chan, "An improved algorithm for
computing the singular value decomposition", 1982). What is cut off has the least Frobenius norm that a matrix of that
rank can leave (C. Eckart, G. Young, 1936). Products must run on one thread each (threadpool_limits), or the last bits
depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from adaptertool.numerics.rounding import Array
from adaptertool.spec.choices import RankChoice

Factors = tuple[Array, Array]
_HIGH = 4  # times as many rows as columns has a matrix that is orthogonalised by its columns' products
_LOST = 2.0**-36  # of the largest of their eigenvalues: smaller ones have too few digits
_SQUARED = 2.0**-900  # within it, and its inverse, sums of squares have all digits
_ALIKE = 4  # times as large as the smallest: what all of them lose is then no more than other roundings
_HEAVY = 2.0**-24  # noise that says that much of what the factors hold is cancelled in their product
_SUMMED = 1e300  # larger numbers are not added up
_MOST = 2044  # 2^1022 twice: by more nothing but 0 is multiplied


class Orthogonal(NamedTuple):
    """Factors Q and R of a matrix."""

    columns: Array  # (n, r): Q, or with `turn` what it is made of, Q = columns @ turn
    turn: Array | None  # (r, r)
    r: Array

    def times(self, core: Array) -> Array:
        """Q @ core"""
        found: Array = self.columns @ (core if self.turn is None else self.turn @ core)
        return found


Qr = Callable[[Array], Orthogonal]


class Svd(NamedTuple):
    """2^exponent · left @ diag(values) @ right. Values descend; those that rounding may have made are 0."""

    left: Array  # (out, n), orthonormal columns
    values: Array  # (n,), the first between 1/4 and 1, or all 0
    right: Array  # (n, in), orthonormal rows; the largest element of each is positive
    exponent: int  # even
    noise: float = 0.0  # how far rounding may have moved the product, Frobenius, in units of the values


def svd_of_product(b: Array, a: Array, by: Qr | None = None, most: int | None = None) -> Svd:
    """The singular value decomposition of b @ a, for b (out, r) and a (r, in), finite float64; n is the least of out, r
    and in. by: what makes the orthogonal factors, `orthogonal` unless given; most: so many vectors are wanted, where
    not all; the values are all told."""
    svd = _svd(b, a, by or orthogonal, most)
    clear = svd.noise <= _HEAVY * svd.values.max(initial=0.0)
    return svd if clear or np.abs(b).max() > _SUMMED else _svd(*_gathered(b, a), by or orthogonal, most)


def _svd(b: Array, a: Array, by: Qr, most: int | None) -> Svd:
    b, a, exponent = _levelled(b, a)
    left, right = by(b), by(a.T)
    first, second = left.r, right.r
    core_left, values, core_right = np.linalg.svd(first @ second.T, full_matrices=False)
    values, more, noise = _told_from_noise(values, first, second, exponent)
    rows = np.ascontiguousarray(right.times(core_right[:most].T).T)
    rows *= (signs := _signs(rows))
    return Svd(left.times(core_left[:, :most] * signs[:, 0]), values, rows, exponent + more, noise)


def _gathered(b: Array, a: Array) -> Factors:
    """Factors of the same product b @ a, with each row of A once: what equal ones cancel of each other is then no
    longer there."""
    rows, places = np.unique(a, axis=0, return_inverse=True)
    columns = [b[:, places.reshape(-1) == row] for row in range(len(rows))]
    sums = [some[:, 0] if some.shape[1] == 1 else [math.fsum(own) for own in some] for some in columns]
    return np.array(sums).reshape(len(rows), len(b)).T, rows


def singular_values(b: Array, a: Array, by: Qr | None = None) -> tuple[Array, int]:
    """(values, exponent) of b @ a as in svd_of_product, without the vectors. values: float64 (n,)."""
    by = by or orthogonal
    b, a, exponent = _levelled(b, a)
    first, second = by(b).r, by(a.T).r
    values, more, _ = _told_from_noise(np.linalg.svd(first @ second.T, compute_uv=False), first, second, exponent)
    return values, exponent + more


def _told_from_noise(values: Array, first: Array, second: Array, exponent: int) -> tuple[Array, int, float]:
    """(values, more, noise): the singular values of first @ second.T times 2^−more, with 0 for what rounding may have
    made, and how much that may be; exponent + more is even."""
    noise = np.finfo(np.float64).eps * second.shape[1] * np.linalg.norm(first) * np.linalg.norm(second)
    more = int(np.frexp(values.max(initial=0.0))[1])
    more += (exponent + more) % 2
    return np.ldexp(np.where(values > noise, values, 0.0), -more), more, float(np.ldexp(noise, -more))


def errors(values: Array) -> Array:
    """The relative error in Frobenius norm where 0, 1, ..., n of the singular values (n,) are kept, float64 (n + 1,)
    (Eckart and Young)."""
    left: Array = np.sqrt(np.append(np.square(values), 0.0)[::-1].cumsum()[::-1])
    return left / left[0] if left[0] else left


def kept(values: Array, cut: RankChoice) -> int:
    """How many of the singular values (n,), in descending order, stay: at least 1, since no adapter has rank 0."""
    if cut.ratio is not None:
        large = int(np.count_nonzero(values >= values.max(initial=0.0) / float(cut.ratio)))
        return max(1, min(large, cut.rank or large))
    if cut.rank is not None:
        return max(1, min(cut.rank, len(values)))
    if cut.energy is not None:
        enough = np.square(errors(values)) <= float(1 - cut.energy)
    else:
        assert cut.max_error is not None
        enough = errors(values) <= float(cut.max_error)
    return max(1, int(enough.argmax()))


def split(svd: Svd, rank: int, *, balanced: bool) -> Factors:
    """(b, a), float64 (out, r) and (r, in) with r = rank where there are as many values, and b @ a the best
    approximation. balanced: both carry the square roots of the singular values; otherwise b carries them, and the rows
    of a are orthonormal. What is beyond float64 becomes infinite."""
    left, values, right = svd.left[:, :rank], svd.values[:rank], svd.right[:rank]
    if not balanced:
        return _times_two_to(left * values, svd.exponent), right
    roots, half = np.sqrt(values), svd.exponent // 2
    return _times_two_to(left * roots, half), _times_two_to(roots[:, None] * right, half)


def storing_error(svd: Svd, stored: Factors, *, balanced: bool) -> float:
    """How far the product of the factors from `split` may be from that of `stored`, the same factors after they were
    rounded (float64), relative to the whole product. What is too small for float64 counts as well, and what rounding
    hid of a product in which most of the factors is cancelled; 1 where that may be all.

    ‖B'A' − BA‖ ≤ ‖(B' − B)·A‖ + ‖B·(A' − A)‖ + ‖B' − B‖·‖A' − A‖ in Frobenius norm; each row of A and column of B is
    as long as its share of the singular value, and orthogonal to the others.
    """
    if not svd.values.any():
        return 1.0 if svd.noise else 0.0
    exact = split(svd._replace(exponent=0), stored[0].shape[1], balanced=balanced)
    values, half = svd.values[: stored[0].shape[1]], svd.exponent // 2
    up, down = (half, half) if balanced else (svd.exponent, 0)
    wide, high = (values, values) if balanced else (np.square(values), np.ones(len(values)))  # squares of the lengths
    of_b, of_a = (
        _times_two_to(own, min(-power, _MOST)) - other
        for own, other, power in zip(stored, exact, (up, down), strict=True)
    )
    columns, rows = np.einsum("ij,ij->j", of_b, of_b), np.einsum("ij,ij->i", of_a, of_a)
    parts = np.sqrt(columns @ high) + np.sqrt(rows @ wide) + np.sqrt(columns.sum() * rows.sum())
    hidden = svd.noise if svd.noise > _HEAVY * svd.values[0] else 0.0
    return float((parts + hidden) / np.linalg.norm(svd.values))


def qr(matrix: Array) -> Factors:
    """Q (n, m), with orthonormal columns, and R (m, r), not triangular, with Q @ R the matrix (n, r), float64; m is the
    least of n and r."""
    columns, turn, r = orthogonal(matrix)
    return columns if turn is None else columns @ turn, r


def orthogonal(matrix: Array) -> Orthogonal:
    """The factors Q and R of `qr`, with Q as a product where it need not be made.

    A high matrix by the eigenvectors V of its columns' products with each other, MᵀM = V·Λ·Vᵀ: the columns of
    M·V·Λ^−½ are nearly orthonormal, and a triangle next to I makes them so; in a fifth of the time of reflections, and
    as exact as they are, since V is orthogonal (A. Stathopoulos, K. Wu, "A block orthogonalization procedure with
    constant synchronization requirements", 2002). Where the smallest of Λ is lost in the rounding of the largest, and
    of other matrices, by reflections.
    """
    high, wide = matrix.shape
    gram = matrix.T @ matrix if high >= _HIGH * wide else np.zeros((0, 0))
    if _SQUARED < np.trace(gram) < 1 / _SQUARED:
        squares, turn = np.linalg.eigh(gram)
        if squares[0] > _LOST * squares[-1]:
            roots = np.sqrt(squares)
            turn, r = turn / roots, roots[:, None] * turn.T
            if squares[-1] <= _ALIKE * squares[0]:
                return Orthogonal(matrix, turn, r)
            q = matrix @ turn
            lower = np.linalg.cholesky(q.T @ q)
            return Orthogonal(q, np.linalg.inv(lower).T, lower.T @ r)
    q, r = np.linalg.qr(matrix)
    return Orthogonal(q, None, r)


def _levelled(b: Array, a: Array) -> tuple[Array, Array, int]:
    """(b', a', e) with b @ a = 2^e · b' @ a': by powers of two each column of b' has the size of its row of a', and the
    largest about 1. So nothing overflows, and what is small in one factor and large in the other is not lost."""
    wide, high = _largest(b, axis=0), _largest(a, axis=1)
    (_, up), (_, down) = np.frexp(wide), np.frexp(high)
    together = (up + down)[(wide > 0) & (high > 0)]
    exponent = int(together.max()) if together.size else 0
    below = np.minimum(up + down - exponent, 0)  # a column or row of zeros stays what it is
    half = below // 2
    return _times_two_to(b, half - up), _times_two_to(a, (below - half - down)[:, None]), exponent


def _largest(factor: Array, axis: int) -> Array:
    largest: Array = np.maximum(factor.max(axis=axis, initial=0.0), -factor.min(axis=axis, initial=0.0))
    return largest


def _times_two_to(factor: Array, power: Any) -> Array:
    """factor·2^power; ldexp takes ten times as long. In two steps where 2^power itself may be beyond the range."""
    if np.abs(power).max(initial=0) < 1000:
        return np.asarray(factor * np.ldexp(1.0, power))
    once: Array = factor * np.ldexp(1.0, power // 2)
    once *= np.ldexp(1.0, power - power // 2)
    return once


def _signs(rows: Array) -> Array:
    """(n, 1): −1 for each row whose largest element is negative, else 1."""
    if not rows.shape[1]:
        return np.ones((len(rows), 1))
    return np.where(-rows.min(axis=1, keepdims=True) > rows.max(axis=1, keepdims=True), -1.0, 1.0)
