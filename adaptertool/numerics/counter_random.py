"""Random numbers that depend on a name and on the place of an element alone."""

from __future__ import annotations

import numpy as np
from blake3 import blake3

from adaptertool.numerics.rounding import Array

_DRAWN = 4  # numbers of 64 bits for each step of the counter


def uniform(name: str, first: int, count: int) -> Array:
    """Elements first..first + count of the sequence of that name, float64 (count,), uniform in [0, 1): multiples of
    2⁻⁵³.

    Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011): Philox 4×64, keyed by the name.
    """
    key = np.frombuffer(blake3(name.encode()).digest(16), np.uint64)
    generator = np.random.Philox(key=key)
    generator.advance(first // _DRAWN)
    skip = first % _DRAWN
    raw = generator.random_raw(skip + count)[skip:]
    numbers: Array = (raw >> np.uint64(11)) * 2.0**-53
    return numbers
