"""Products of factors, B·A, and their singular values, without ever forming the out × in matrix. In float64.

QR of B and of Aᵀ leaves a core of at most r × r, whose SVD is that of the product (T. Chan, "An improved algorithm for
computing the singular value decomposition", 1982). What is cut off has the least Frobenius norm that a matrix of that
rank can leave (C. Eckart, G. Young, 1936). Products must run on one thread each (threadpool_limits), or the last bits
depend on their number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from adaptertool.numerics.rounding import Array
from adaptertool.spec import Cut


class Svd(NamedTuple):
    """2^exponent · left @ diag(values) @ right. Values descend; those that rounding may have made are 0."""

    left: Array  # (out, n), orthonormal columns
    values: Array  # (n,), the first between 1/4 and 1, or all 0
    right: Array  # (n, in), orthonormal rows; the largest element of each is positive
    exponent: int  # even


def svd_of_product(b: Array, a: Array) -> Svd:
    """Of b @ a, for b (out, r) and a (r, in), finite float64; n is the least of out, r and in."""
    b, a, exponent = _levelled(b, a)
    (left, first), (right, second) = np.linalg.qr(b), np.linalg.qr(a.T)
    core_left, values, core_right = np.linalg.svd(first @ second.T, full_matrices=False)
    noise = np.finfo(np.float64).eps * len(a) * np.linalg.norm(first) * np.linalg.norm(second)
    more = int(np.frexp(values.max(initial=0.0))[1])
    more += (exponent + more) % 2
    values = np.ldexp(np.where(values > noise, values, 0.0), -more)
    left, right = left @ core_left, core_right @ right.T
    signs = _signs(right)
    return Svd(left * signs[:, 0], values, right * signs, exponent + more)


def errors(values: Array) -> Array:
    """The relative error in Frobenius norm where 0, 1, ..., n of the singular values are kept (Eckart and Young)."""
    left: Array = np.sqrt(np.append(np.square(values), 0.0)[::-1].cumsum()[::-1])
    return left / left[0] if left[0] else left


def kept(values: Array, cut: Cut) -> int:
    """How many singular values stay: at least 1, since no adapter has rank 0."""
    if cut.rank is not None:
        return max(1, min(cut.rank, len(values)))
    if cut.energy is not None:
        enough = np.square(errors(values)) <= float(1 - cut.energy)
    else:
        assert cut.max_error is not None
        enough = errors(values) <= float(cut.max_error)
    return max(1, int(enough.argmax()))


def split(svd: Svd, rank: int, *, balanced: bool) -> tuple[Array, Array]:
    """(b, a) of this rank with b @ a the best approximation. balanced: both carry the square roots of the singular
    values; otherwise b carries them, and the rows of a are orthonormal. What is beyond float64 becomes infinite.
    """
    left, values, right = svd.left[:, :rank], svd.values[:rank], svd.right[:rank]
    if not balanced:
        return np.ldexp(left * values, svd.exponent), right
    roots, half = np.sqrt(values), svd.exponent // 2
    return np.ldexp(left * roots, half), np.ldexp(roots[:, None] * right, half)


def storing_error(svd: Svd, rank: int, b: Array, a: Array, *, balanced: bool) -> float:
    """How far b @ a, the factors of `split` as they are stored, may be from those, relative to the whole product.

    ‖B'A' − BA‖ ≤ ‖(B' − B)·A‖ + ‖B·(A' − A)‖ + ‖B' − B‖·‖A' − A‖ in Frobenius norm; each row of A and column of B is
    as long as its share of the singular value, and orthogonal to the others.
    """
    whole = float(np.linalg.norm(svd.values))
    if not whole:
        return 0.0
    values, half = svd.values[:rank], svd.exponent // 2
    up, down = (half, half) if balanced else (svd.exponent, 0)
    wide, high = (np.sqrt(values), np.sqrt(values)) if balanced else (values, np.ones(rank))
    exact_b, exact_a = split(svd, rank, balanced=balanced)
    of_b, of_a = np.ldexp(b - exact_b, -up), np.ldexp(a - exact_a, -down)
    parts = np.linalg.norm(of_b * high) + np.linalg.norm(wide[:, None] * of_a)
    return float(parts + np.linalg.norm(of_b) * np.linalg.norm(of_a)) / whole


def _levelled(b: Array, a: Array) -> tuple[Array, Array, int]:
    """(b', a', e) with b @ a = 2^e · b' @ a': by powers of two each column of b' has the size of its row of a', and the
    largest about 1. So nothing overflows, and what is small in one factor and large in the other is not lost."""
    (_, up), (_, down) = np.frexp(np.abs(b).max(axis=0, initial=0.0)), np.frexp(np.abs(a).max(axis=1, initial=0.0))
    together = (up + down)[(b != 0).any(axis=0) & (a != 0).any(axis=1)]
    exponent = int(together.max(initial=np.iinfo(np.int32).min)) if together.size else 0
    below = np.minimum(up + down - exponent, 0)  # a column or row of zeros stays what it is
    half = below // 2
    return np.ldexp(b, half - up), np.ldexp(a, (below - half - down)[:, None]), exponent


def _signs(rows: Array) -> Array:
    """(n, 1): −1 for each row whose largest element is negative, else 1."""
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    return np.where(largest < 0, -1.0, 1.0)
