"""Cayley's transform of blocks, (I + Q)·(I − Q)⁻¹, and the first terms of its series in Q, in double-double.

The same bits on every machine: nothing here asks a library of linear algebra. Source: A. Cayley, Crelle's Journal 32
(1846), 119-123; of the iteration G. Schulz, ZAMM 13 (1933), 57-59.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.numerics.compiled import FUNCTIONS, address
from adaptertool.numerics.double_double import DoubleDouble

Array = Any  # of float64

_STEPS, _NEAR = 6, 2.0**-52
_SMALL, _PART = 8, 1 << 17  # numbers of a row of small blocks, and products that are made together


def transform(q: DoubleDouble) -> DoubleDouble:
    """2·(I − Q)⁻¹ − I, which is that, of blocks (n, b, b) that are skew: Qᵀ = −Q.

    Of such (I − Q) has an inverse of norm at most 1. An inverse in float64 is improved by X + X·(I − (I − Q)·X), whose
    error is the square of that of X, until what rounding leaves is about b·2^-104 times the norm of I − Q. What that
    does not reach, for numbers of Q far beyond 2^40, is computed in rationals. Of what is not finite it is NaN; of what
    float32 holds it is finite, whatever float64 loses on the way.
    """
    n, wide, _ = q.shape
    eye = DoubleDouble.of(np.broadcast_to(np.eye(wide), q.shape))
    minus = eye - q
    with np.errstate(all="ignore"):
        inverse = DoubleDouble.of(_eliminated(minus.high.copy()))
        left = np.arange(n)  # blocks that are not near enough yet: no block depends on what it stands among
        for _ in range(_STEPS):
            some = inverse[left]
            residual = eye[left] - times(minus[left], some)
            inverse[left] = some + times(DoubleDouble.of(some.high), DoubleDouble.of(residual.high))
            left = left[~(abs(residual.high).sum(2).max(1, initial=0.0) <= _NEAR)]
            if not len(left):
                break
        for block in left:
            known = np.isfinite(minus.parts[:2, block]).all()
            inverse.parts[:, block] = _exact_inverse(minus.parts[:2, block]) if known else np.nan
    return inverse + inverse - eye


def series(q: DoubleDouble, terms: int) -> DoubleDouble:
    """I + 2·Q + 2·Q² + ... + 2·Q^(n−2) + Q^(n−1) of blocks (n, b, b), for n terms from 3 on; those of 4 are those of 3,
    and the last is Q³. Of two terms it is I + 2·Q, of fewer I. So PEFT from 0.18.0 on has it.

    Each power loses about b·2^-104 of the sum of magnitudes that it is made of.
    """
    made = DoubleDouble.of(np.broadcast_to(np.eye(q.shape[1]), q.shape))
    if terms > 1:
        made = made + (q + q)
    if terms > 2:
        power = times(q, q)
        made = made + (power + power)
        for _ in range(3, terms - 1):
            power = times(power, q)
            made = made + (power + power)
        made = made + times(power, q)
    return made


def times(left: DoubleDouble, right: DoubleDouble) -> DoubleDouble:
    """Blocks (n, b, b) times blocks."""
    made, (count, wide, _) = np.empty_like(left.parts), left.shape
    more = np.zeros(count, bool) if right.plain else right.low.any((1, 2))
    step = max(1, _PART // wide**3)
    for first in range(0, count, step):
        part = slice(first, first + step)
        product = _by_numbers(left[part], right.high[part])
        if more[part].any():
            some = np.flatnonzero(more[part])
            product[some] = product[some] + _by_numbers(left[part][some], right.low[part][some])
        made[:, part] = product.parts
    return DoubleDouble(made)


def _by_numbers(left: DoubleDouble, right: Array) -> DoubleDouble:
    """Blocks times blocks of float64: each on its own, or small ones together, element by element."""
    count, wide, _ = left.shape
    if wide > _SMALL:
        return DoubleDouble(_each(np.ascontiguousarray(left.parts), np.ascontiguousarray(right)))
    size = (wide, count, wide, wide)  # what is summed over, block, row, and column
    rows = np.broadcast_to(left.parts.transpose(0, 3, 1, 2)[..., None], (3, *size)).reshape(3, wide, -1)
    columns = np.broadcast_to(right.transpose(1, 0, 2)[:, :, None], size).reshape(wide, -1)
    return DoubleDouble.of_columns(rows, columns).reshape(count, wide, wide)


def _each(left: Array, right: Array) -> Array:
    """Each block by itself: (3, n, b, b) times (n, b, b)."""
    (count, wide, _), made = right.shape, np.empty_like(left)
    call = FUNCTIONS.get("pairs_blocks")
    given = (address(array, np.float64, array.size) for array in (left, right, made))
    if call is None or not call(*given, count, wide):
        for block in range(count):
            made[:, block] = (DoubleDouble(left[:, block]) @ DoubleDouble.of(right[block])).parts
    return made


def _eliminated(blocks: Array) -> Array:
    """The inverses in float64, in the place of the blocks (Gauss and Jordan). No pivot is 0, nor is one looked for: the
    symmetric part of I − Q is I."""
    for k in range(blocks.shape[1]):
        pivot = 1 / blocks[:, k, k]
        row, column = blocks[:, k] * pivot[:, None], blocks[:, :, k].copy()
        blocks -= column[:, :, None] * row[:, None, :]
        blocks[:, k], blocks[:, :, k] = row, -column * pivot[:, None]
        blocks[:, k, k] = pivot
    return blocks


def _exact_inverse(parts: Array) -> Array:
    """The inverse of a block, of its two parts (2, b, b), in rationals; as high, low and no error."""
    exact = np.frompyfunc(Fraction, 1, 1)
    blocks = exact(parts[0])[None] + exact(parts[1])[None]
    inverse = _eliminated(blocks)[0]
    high = inverse.astype(np.float64)
    return np.stack([high, (inverse - exact(high)).astype(np.float64), np.zeros_like(high)])
