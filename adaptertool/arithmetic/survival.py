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


def every_nth(size: int) -> int:
    """The n of a block of that many elements, of which every n-th is in the sums: odd, so that all columns have their
    turn."""
    return max(1, size // _SAMPLE) | 1


def tally_of(before: Array, sample: Array, result: Array, dtype: str, base_dtype: str, settled: Settled) -> Tally:
    """The tally of a block, flat arrays: `before` as the base stores it (base_dtype), and `result` as it is stored
    (dtype), of one size; sample: every n-th of the values that were rounded (every_nth), in float64 or float32."""
    every = every_nth(result.size)
    old, new = doubles(before[::every], base_dtype), doubles(result[::every], dtype)
    delta = sample.astype(np.float64) - old
    kept, update = sums(float(((new - old) * delta).sum()), float((delta * delta).sum()))
    return Tally(changed(before, result, dtype, base_dtype), settled.exactly, settled.one_by_one, kept, update)


def kept_by_settling(places: Array, size: int, dtype: str, old: Array, told: Array, new: Array) -> float:
    """What the first sum of a block of so many elements (tally_of) lacks where the elements at these places were told
    as left open, and are settled now.

    old, told, new: as the base has them, as they were when the sum was taken, and as they are, all as `dtype` stores
    them. What is open lies in the middle between two numbers that are stored, or next to it: that is taken for it.
    """
    some = places % every_nth(size) == 0
    before, first, last = (doubles(one[some], dtype) for one in (old, told, new))
    return float(((last - first) * ((first + last) / 2 - before)).sum())


def changed(before: Array, result: Array, dtype: str, base_dtype: str) -> int:
    """How many elements of `result` are not stored as in `before`, both flat; between dtypes, as it would be if it were
    cast."""
    if dtype != base_dtype:
        before = rounded(doubles(before, base_dtype), dtype)
    return differing(before, result)
