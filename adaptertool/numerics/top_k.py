"""Which elements of a long vector are its largest, without holding it: by passes over its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from adaptertool.numerics.rounding import Array

Parts = Callable[[], Iterable[Array]]  # the parts of the vector, flat float64, in order; may be asked for several times

_DIGIT = 16  # bits that a pass decides on
_COLLECTED = 1 << 21  # elements that are sorted at once


class Largest(NamedTuple):
    """The largest magnitudes: all above `bound`, and of those that are equal to it the first `equal`."""

    bound: float
    equal: int
    before: tuple[int, ...]  # of each part: how many in the parts before it are equal to the bound

    def mask(self, part: Array, number: int) -> Array:
        """Which elements of part `number`, flat, are among the largest: bool, of the same shape."""
        sizes = abs(part)
        same = np.flatnonzero(sizes == self.bound)
        kept: Array = sizes > self.bound
        kept[same[: max(0, self.equal - self.before[number])]] = True
        return kept


class Band(NamedTuple):
    """The largest magnitudes, but for the very largest."""

    inner: Largest  # these and those that are skipped
    skipped: Largest | None

    def mask(self, part: Array, number: int) -> Array:
        """Which elements of part `number`, flat, are in the band: bool, of the same shape."""
        kept = self.inner.mask(part, number)
        return kept if self.skipped is None else kept & ~self.skipped.mask(part, number)


def band(parts: Parts, skipped: int, count: int) -> Band:
    """The `count` elements of largest magnitude after the `skipped` largest; among equals the first."""
    return Band(largest(parts, skipped + count), largest(parts, skipped) if skipped else None)


def largest(parts: Parts, count: int) -> Largest:
    """The `count` elements of largest magnitude; among equals the first. NaN counts as larger than all."""
    if count <= 0:
        return Largest(np.inf, 0, tuple(0 for _ in parts()))
    low, width, above = 0, 64, 0  # the bound lies among bit patterns low..low + 2^width; `above` are beyond these
    while width > 0:
        width -= _DIGIT
        histogram = np.zeros(1 << _DIGIT, np.int64)
        for part in parts():
            bits = abs(part).view(np.uint64)
            inside = bits[bits >> np.uint64(width + _DIGIT) == low >> width + _DIGIT] if width + _DIGIT < 64 else bits
            digits = (inside >> np.uint64(width)).astype(np.int64) & (1 << _DIGIT) - 1
            histogram += np.bincount(digits, minlength=1 << _DIGIT)
        beyond = above + np.cumsum(histogram[::-1])[::-1] - histogram  # larger than all of this digit
        digit = int(np.flatnonzero((beyond < count) & (beyond + histogram >= count))[0])
        above, low = int(beyond[digit]), low | digit << width
        if histogram[digit] <= _COLLECTED:
            low = _kth(parts, low, width, count - above)
            break
    bound = float(np.uint64(low).view(np.float64))
    equal, larger, before = list[int](), 0, list[int]()
    for part in parts():
        sizes = abs(part)
        before.append(sum(equal))
        equal.append(int(np.count_nonzero(sizes == bound)))
        larger += int(np.count_nonzero(sizes > bound))
    return Largest(bound, count - larger, tuple(before))


def _kth(parts: Parts, low: int, width: int, rank: int) -> int:
    """The bit pattern of the rank-th largest of those that begin as `low` does, above the lowest `width` bits."""
    found = []
    for part in parts():
        bits = abs(part).view(np.uint64)
        found.append(bits[bits >> np.uint64(width) == low >> width] if width else bits[bits == low])
    together = np.concatenate(found)
    return int(np.partition(together, len(together) - rank)[len(together) - rank])
