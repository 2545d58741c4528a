"""How many elements of a block changed, and how much of its change the rounding leaves: a pass over stored numbers that
are in the cache, and a sample of them."""

from __future__ import annotations

import numpy as np

from adaptertool.arithmetic.correct_rounding import Settled
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.statistics import differing
from adaptertool.spec.tally import Tally, sums

_SAMPLE = 2048  # elements of a block, about, where it has as many


def tally_of(before: Array, value: Array, result: Array, dtype: str, base_dtype: str, settled: Settled) -> Tally:
    """The tally of a block, flat arrays of one size: `before` as the base stores it (base_dtype), `value` in float64 or
    float32, and `result`, that as stored (dtype).

    The sums are over every n-th element, n odd so that all columns have their turn: by position alone.
    """
    every = max(1, result.size // _SAMPLE) | 1
    old, new = doubles(before[::every], base_dtype), doubles(result[::every], dtype)
    delta = value[::every].astype(np.float64) - old
    kept, update = sums(float(((new - old) * delta).sum()), float((delta * delta).sum()))
    return Tally(changed(before, result, dtype, base_dtype), settled.exactly, settled.one_by_one, kept, update)


def changed(before: Array, result: Array, dtype: str, base_dtype: str) -> int:
    """How many elements of `result` are not stored as in `before`, both flat; between dtypes, as it would be if it were
    cast."""
    if dtype != base_dtype:
        before = rounded(doubles(before, base_dtype), dtype)
    return differing(before, result)
