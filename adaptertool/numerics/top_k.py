"""Which elements of a long vector are its largest, without holding it: by passes over its parts."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from adaptertool.numerics.lazy import DIGIT, Lazy
from adaptertool.numerics.rounding import Array

_COLLECTED = 1 << 21  # elements that are sorted at once
Part = Array | Lazy  # flat, float64
Found = TypeVar("Found")


class Parts(Protocol):
    """The parts of a vector, of which each is given to a function, in any thread: what comes back, in order."""

    def __call__(self, function: Callable[[Part], Found], /) -> Iterable[Found]: ...


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
        kept[same[: self.equal_in(number)]] = True
        return kept

    def equal_in(self, number: int) -> int:
        """How many of those that are equal to the bound are among the largest from part `number` on."""
        return max(0, self.equal - self.before[number])


class Band(NamedTuple):
    """The largest magnitudes, but for the very largest."""

    inner: Largest  # these and those that are skipped
    skipped: Largest | None

    def kept(self, part: Part, number: int) -> Part:
        """Part `number` with zeros, signed as what they replace, where elements are not in the band."""
        if isinstance(part, Lazy):
            skip = (math.inf, 0) if self.skipped is None else (self.skipped.bound, self.skipped.equal_in(number))
            return part.between(self.inner.bound, self.inner.equal_in(number), *skip)
        kept = self.inner.mask(part, number)
        product: Array = part * (kept if self.skipped is None else kept & ~self.skipped.mask(part, number))
        return product


def band(parts: Parts, skipped: int, count: int) -> Band:
    """The `count` elements of largest magnitude after the `skipped` largest; among equals the first."""
    return Band(largest(parts, skipped + count), largest(parts, skipped) if skipped else None)


def largest(parts: Parts, count: int) -> Largest:
    """The `count` elements of largest magnitude; among equals the first. NaN counts as larger than all."""
    if count <= 0:
        return Largest(np.inf, 0, tuple(parts(lambda _: 0)))
    prefix, width, above = 0, 64, 0  # the bits of the bound but for the lowest `width`; `above` are beyond all of these
    while True:
        width -= DIGIT
        histogram, rest = _histogram(parts, prefix, width)
        beyond = above + np.cumsum(histogram[::-1])[::-1] - histogram  # larger than all of this digit
        digit = int(np.flatnonzero((beyond < count) & (beyond + histogram >= count))[0])
        above = int(beyond[digit])
        if rest == 0:  # all that have this digit are equal
            of_digit = functools.partial(_having, prefix=prefix, width=width, digit=digit)
            bound, equal = (prefix << DIGIT | digit) << width, list(parts(of_digit))
            break
        prefix = prefix << DIGIT | digit
        if histogram[digit] <= _COLLECTED:
            found = list(parts(functools.partial(_collected, prefix=prefix, width=width)))
            together, rank = np.concatenate(found), count - above
            bound = int(np.partition(together, len(together) - rank)[len(together) - rank])
            above += int(np.count_nonzero(together > bound))
            equal = [int(np.count_nonzero(one == bound)) for one in found]
            break
    before = tuple(itertools.accumulate(equal[:-1], initial=0))
    return Largest(float(np.uint64(bound).view(np.float64)), count - above, before)


def _histogram(parts: Parts, prefix: int, width: int) -> tuple[Array, int]:
    """As `_digits` of the whole vector."""
    total, others, lock = np.zeros(1 << DIGIT, np.int64), 0, threading.Lock()

    def add(part: Part) -> None:
        nonlocal total, others
        found, rest = _digits(part, prefix, width)
        with lock:
            total += found.astype(np.int64)
            others |= rest

    for _ in parts(add):
        pass
    return total, others


def _digits(part: Part, prefix: int, width: int) -> tuple[Array, int]:
    """As Lazy.digits has it."""
    if isinstance(part, Lazy):
        return part.digits(prefix, width)
    bits = _bits(part, prefix, width + DIGIT)
    digits = (bits >> np.uint64(width)).astype(np.int64) & (1 << DIGIT) - 1
    rest = int(np.bitwise_or.reduce(bits, initial=0)) & (1 << width) - 1
    return np.bincount(digits, minlength=1 << DIGIT), rest


def _having(part: Part, prefix: int, width: int, digit: int) -> int:
    return int(_digits(part, prefix, width)[0][digit])


def _collected(part: Part, prefix: int, width: int) -> Array:
    """As Lazy.collected has it."""
    return part.collected(prefix, width) if isinstance(part, Lazy) else _bits(part, prefix, width)


def _bits(part: Array, prefix: int, width: int) -> Array:
    """The bit patterns of the magnitudes, of those that are `prefix` but for the lowest `width` bits."""
    bits: Array = abs(part).view(np.uint64)
    return bits[bits >> np.uint64(width) == prefix] if width < 64 else bits
