"""How far stored numbers are apart."""

from __future__ import annotations

import numpy as np

from adaptertool.numerics.rounding import WORD, Array


def ulps(one: Array, other: Array, dtype: str) -> Array:
    """How many representable numbers apart, as unsigned integers; −0.0 and 0.0 are none apart."""
    here, there = _order(one, dtype), _order(other, dtype)
    apart: Array = np.maximum(here, there) - np.minimum(here, there)  # of float64 beyond int64, but not once unsigned
    return apart.view(f"u{apart.itemsize}")


def _order(stored: Array, dtype: str) -> Array:
    """Integers in the order of the numbers."""
    bits = WORD[dtype](0).nbytes * 8
    signed = stored.view(WORD[dtype]).astype(np.int32 if bits == 16 else np.int64)
    size = signed & (1 << bits - 1) - 1
    negative = signed >> bits - 1 & 1
    order: Array = (size ^ -negative) + negative  # −size where it is negative, without a branch
    return order
