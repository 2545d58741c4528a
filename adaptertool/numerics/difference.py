"""Differences of float32 numbers, and what is asked of them: their size, and whether they are exact."""

from __future__ import annotations

import numpy as np

from adaptertool.numerics.compiled import FUNCTIONS, address
from adaptertool.numerics.rounding import Array

SUMS = 16  # as in kernel/difference.h


def subtract(one: Array, other: Array, out: Array, squares: Array, rounded: Array) -> float:
    """out = one − other, float32, flat, all of one size; returns the largest magnitude, infinite or NaN if one is.

    squares, rounded: float64 (SUMS,). squares[i % SUMS] += out[i]², and the same to `rounded` where out[i] is not the
    exact difference.
    """
    if (call := FUNCTIONS.get("subtract")) is not None:
        arrays = [address(array, np.float32, one.size) for array in (one, other, out)]
        largest = call(*arrays, address(squares, np.float64, SUMS), address(rounded, np.float64, SUMS), one.size)
        return float(np.uint32(largest).view(np.float32))
    np.subtract(one, other, out=out)
    # Of the larger number the first of these is exact, of the smaller one the second (T. Dekker, 1971)
    exact = (one - out == other) & (out + other == one)
    for sums, chosen in ((squares, out), (rounded, np.where(exact, np.float32(0), out))):
        each = np.zeros((-(-out.size // SUMS) + 1, SUMS))
        each[0] = sums
        np.square(chosen, out=each[1:].reshape(-1)[: out.size], dtype=np.float64)
        sums[:] = np.add.accumulate(each)[-1]  # one after the other, as in the kernel
    sizes = out.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return float(sizes.max(initial=np.uint32(0)).view(np.float32))
