"""The orthonormal basis that a QR decomposition makes of columns, in double-double, and the signs that LAPACK gives it.

The same bits on every machine: nothing here asks a library of linear algebra.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from adaptertool.numerics.double_double import DoubleDouble

Array = Any  # of float64

_NEAR = 2.0**-20  # of a column, where float32 may take one sign or the other


def basis(columns: Array) -> DoubleDouble:
    """Q (n, r) of P (n, r) = Q·T, with a positive diagonal of T: of PᵀP = L·D·Lᵀ, by elimination, Qᵀ = D^(−1/2)·L⁻¹·Pᵀ.

    It errs by about r·2^-102 times the square of the condition of P. Where columns depend on each other, errors are
    large, infinite or NaN.
    """
    rank, transposed = columns.shape[1], np.ascontiguousarray(columns.T)
    products = DoubleDouble.of(transposed) @ DoubleDouble.of(columns)
    rows = DoubleDouble(np.concatenate([products.parts, DoubleDouble.of(np.eye(rank)).parts], axis=2))
    with np.errstate(all="ignore"):
        for k in range(rank - 1):
            shares = rows[k + 1 :, k : k + 1] / rows[k : k + 1, k : k + 1]
            rows[k + 1 :] = rows[k + 1 :] - shares * rows[k : k + 1]
        sizes = DoubleDouble(np.stack([np.diagonal(part) for part in rows.parts[:, :, :rank]])).sqrt()
        return (rows[:, rank:] / sizes.reshape(-1, 1) @ DoubleDouble.of(transposed)).T


def signs(columns: Array) -> Array:
    """The signs of the diagonal of T (r,), as reflections make it; 0 where a number is so near to 0 that float32 does
    not tell.

    Reflection k makes of column k, below its first k numbers, x, the vector (−sgn(x[0])·‖x‖, 0, ...), and leaves it as
    it is where it has no other number than x[0].
    Source: E. Anderson et al., LAPACK Users' Guide (1999), xGEQRF and xLARFG.
    """
    rest, sizes = columns.copy(), np.sqrt((columns * columns).sum(0))
    found = np.zeros(columns.shape[1])
    for k, size in enumerate(sizes.tolist()):
        x = rest[k:, k].copy()
        below, near = float(np.sqrt((x[1:] * x[1:]).sum())), (_NEAR * size if k else 0.0)
        first = float(x[0])
        if len(x) == 1 or below == near == 0:
            found[k] = math.copysign(1.0, first) if abs(first) > near else 0.0
            continue
        if (abs(first) <= near and k) or below <= near:
            continue
        found[k] = -1.0 if first >= 0 else 1.0
        x[0] -= found[k] * math.hypot(first, below)
        rest[k:, k:] -= np.outer(x, 2 / (x * x).sum() * (x[:, None] * rest[k:, k:]).sum(0))
    return found
