"""Stored numbers as float64, which is exact, and float64 as stored numbers, rounded once: in new arrays,
if not in one that is given. And what is told of stored numbers without these, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from adaptertool.codecs import BY_DTYPE
from adaptertool.numerics import statistics
from adaptertool.numerics.rounding import Array, to_nearest, to_odd
from adaptertool.numerics.statistics import Apart


def doubles(stored: Array, dtype: str, out: Array | None = None) -> Array:
    """The numbers that are stored as `dtype`, in float64, of the same shape; in `out`, if there is one."""
    out = np.empty(stored.shape) if out is None else out
    BY_DTYPE[dtype].decode(np.ascontiguousarray(stored).reshape(-1), out.reshape(-1))
    return out


def rounded(values: Array, dtype: str) -> Array:
    """The correctly rounded float64 values, of the same shape, as `dtype` stores them."""
    codec = BY_DTYPE[dtype]
    out = np.empty(values.shape, codec.held)
    codec.encode(np.ascontiguousarray(values).reshape(-1), 0.0, 0.0, out.reshape(-1))
    return out


def rounded_exactly(values: Sequence[Fraction], dtype: str) -> Array:
    """The correctly rounded rational values, (n,), as `dtype` stores them."""
    near = to_odd if BY_DTYPE[dtype].rounds else to_nearest
    return rounded(np.array([near(value) for value in values]), dtype)


def largest_stored(stored: Array, dtype: str) -> float:
    """The largest magnitude of numbers stored as `dtype`, flat; infinity or NaN where one is not finite."""
    if not stored.size:
        return 0.0
    codec = BY_DTYPE[dtype]
    sizes = codec.words(stored) & codec.word.type(np.iinfo(codec.word).max >> 1)
    return codec.decode(np.atleast_1d(sizes.max()).view(codec.held), np.empty(1))


def same_bits(one: Array, other: Array) -> Array:
    """Where both arrays are stored as the same bits, −0.0 and 0.0 apart and NaN equal to itself: of one dtype, flat."""
    word = f"u{one.itemsize}"
    same: Array = one.view(word) == other.view(word)
    return same


def apart(one: Array, other: Array, dtype: str) -> Apart:
    """How `other` differs from `one`, both stored as `dtype`, flat: in bits, and as numbers."""
    return statistics.apart(one, other, dtype, lambda stored: doubles(stored, dtype))


def energy(stored: Array, dtype: str) -> float:
    """The sum of squares of numbers stored as `dtype`, flat; infinite or NaN where float64 does not hold it."""
    return statistics.energy(stored, dtype, lambda some: doubles(some, dtype))
