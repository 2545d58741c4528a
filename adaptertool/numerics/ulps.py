"""How far stored numbers are apart."""

from __future__ import annotations

import numpy as np

from adaptertool.numerics.rounding import Array


def ulps(one: Array, other: Array) -> Array:
    """How many representable numbers apart two arrays of one shape are, in unsigned integers; −0.0 and 0.0 are none
    apart.

    one, other: stored numbers as words, a sign above a magnitude
    """
    here, there = _order(one), _order(other)
    apart: Array = np.maximum(here, there) - np.minimum(here, there)  # of float64 beyond int64, but not once unsigned
    return apart.view(f"u{apart.itemsize}")


def _order(words: Array) -> Array:
    """Integers in the order of the numbers."""
    bits = words.itemsize * 8
    signed: Array = words.astype(np.int32 if bits <= 16 else np.int64)
    size = signed & (1 << bits - 1) - 1
    negative = signed >> bits - 1 & 1
    order: Array = (size ^ -negative) + negative  # −size where it is negative, without a branch
    return order
