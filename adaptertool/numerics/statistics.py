"""Counts and sums over arrays of numbers, in one pass each. All arrays are flat and contiguous.

Results are the same at every level of the kernel and in numpy: sums are added up in a fixed order, that of
kernel/statistics.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from adaptertool.numerics.compiled import FUNCTIONS, address
from adaptertool.numerics.rounding import STORED, Array
from adaptertool.numerics.ulps import ulps

_ABREAST, _STRETCH = 16, 2048  # as in kernel/statistics.h
_CACHED = 8 * _STRETCH  # elements
_EXPONENT = 0x7FF << 52  # of float64


class Apart(NamedTuple):
    """How stored numbers B differ from others of their dtype, A."""

    differ: int = 0  # elements that are other bits
    odd: int = 0  # of these, those where A or B is not finite
    lost: int = 0  # of these, those where B alone is not
    distance: int = 0  # the largest, in representable numbers, where both are finite
    square: float = 0.0  # Σ(B − A)², where both are finite
    size: float = 0.0  # ΣA², where A is finite
    largest: float = 0.0  # |B − A|, where both are finite


Decode = Callable[[Array], Array]  # stored numbers, as float64


def apart(one: Array, other: Array, dtype: str, decode: Decode) -> Apart:
    """How `other` differs from `one`, both stored as `dtype`; codecs.numbers has it with the `decode` of each."""
    if (call := FUNCTIONS.get(f"compare_{dtype}")) is not None:
        counts, sums = np.empty(4, np.uint64), np.empty(3)
        stored = (address(array, STORED[dtype], one.size) for array in (one, other))
        call(*stored, one.size, counts.ctypes.data, sums.ctypes.data)
        differ, odd, lost, distance = counts.tolist()
        return Apart(differ, odd, lost, distance, *sums.tolist())
    counts, totals, ends = np.zeros(3, np.int64), np.zeros((2, _ABREAST)), [(0, 0.0)]
    for part in _parts(one.size):
        a, b = one[part], other[part]
        words, before, after = [array.view(f"u{array.itemsize}") for array in (a, b)], decode(a), decode(b)
        differ, known = words[0] != words[1], np.isfinite(before)
        both = known & np.isfinite(after)
        counts += [np.count_nonzero(odd) for odd in (differ, differ & ~both, known & ~both)]
        with np.errstate(all="ignore"):
            off = np.where(both, after - before, 0.0)
            _add(totals, off * off, np.where(known, before * before, 0.0))
        ends.append((int(ulps(*(word[both] for word in words)).max(initial=0)), float(abs(off).max())))
    distances, sizes = zip(*ends, strict=True)
    differ, odd, lost = counts.tolist()
    square, size = _ended(totals)
    return Apart(differ, odd, lost, max(distances), square, size, max(sizes))


def energy(stored: Array, dtype: str, decode: Decode) -> float:
    """Σx² of numbers stored as `dtype`: infinite or NaN where one of them is, or where float64 does not hold it."""
    if (call := FUNCTIONS.get(f"energy_{dtype}")) is not None:
        return float(call(address(stored, STORED[dtype], stored.size), stored.size))
    totals = np.zeros((1, _ABREAST))
    for part in _parts(stored.size):
        numbers = decode(stored[part])
        with np.errstate(all="ignore"):
            _add(totals, numbers * numbers)
    return _ended(totals)[0]


def differing(one: Array, other: Array) -> int:
    """How many elements are other bits: of one dtype."""
    if (call := FUNCTIONS.get(f"differing_{one.itemsize * 8}")) is not None:
        return int(call(address(one, one.dtype, one.size), address(other, one.dtype, one.size), one.size))
    word = f"u{one.itemsize}"
    return int(np.count_nonzero(one.view(word) != other.view(word)))


class Drifted(NamedTuple):
    """What numbers E became, W before, as they are stored, S; with Δ = E − W."""

    touched: int  # elements where Δ is not 0
    same: int  # of these, those where S = W
    base: float  # ΣW²
    exact: float  # ΣE²
    moved: float  # ΣE², where Δ is not 0
    delta: float  # ΣΔ²
    error: float  # Σ(S − E)²
    along: float  # Σ(S − W)·Δ
    most: float  # |S − E| in powers of two at or below |E|, the largest


def drifted(before: Array, exact: Array, stored: Array, least: float) -> Drifted:
    """W, E and S, finite float64. least: no power of two is smaller."""
    size = exact.size
    if (call := FUNCTIONS.get("drifted")) is not None:
        counts, sums = np.empty(2, np.uint64), np.empty(7)
        numbers = (address(array, np.float64, size) for array in (before, exact, stored))
        call(*numbers, size, least, counts.ctypes.data, sums.ctypes.data)
        touched, same = counts.tolist()
        return Drifted(touched, same, *sums.tolist())
    touched, same, most, totals = 0, 0, 0.0, np.zeros((6, _ABREAST))
    for part in _parts(size):
        w, e, s = before[part], exact[part], stored[part]
        with np.errstate(all="ignore"):
            delta, off, square = e - w, s - e, e * e
            is_touched = delta != 0
            power = np.maximum((e.view(np.int64) & _EXPONENT).view(np.float64), least)
            _add(totals, w * w, square, np.where(is_touched, square, 0.0), delta * delta, off * off, (s - w) * delta)
            most = max(most, float((abs(off) / power).max()))
        touched += int(np.count_nonzero(is_touched))
        same += int(np.count_nonzero(is_touched & (s == w)))
    return Drifted(touched, same, *(*_ended(totals), most))


def column_sums(before: Array, exact: Array) -> tuple[Array, Array, Array]:
    """(ΣE², ΣE² where E − W is not 0, how many these are) of each column of W and E, contiguous float64 matrices;
    float64, from the first row to the last."""
    rows, columns = exact.shape
    if (call := FUNCTIONS.get("column_sums")) is not None:
        sums = np.zeros((3, columns))
        numbers = (address(array, np.float64, exact.size) for array in (before, exact))
        call(*numbers, rows, columns, *(part.ctypes.data for part in sums))
        return sums[0], sums[1], sums[2]
    with np.errstate(all="ignore"):
        squares, touched = exact * exact, exact - before != 0
        parts = squares, np.where(touched, squares, 0.0), touched.astype(np.float64)
        first, second, third = (np.add.reduce(part, 0) for part in parts)
    return first, second, third


def _parts(size: int) -> Iterator[slice]:
    """Whole stretches that stay in the cache."""
    return (slice(first, min(size, first + _CACHED)) for first in range(0, size, _CACHED))


def _add(totals: Array, *terms: Array) -> None:
    """Add terms to sums: of each _ABREAST, side by side, stretch by stretch."""
    for total, some in zip(totals, terms, strict=True):
        whole = np.zeros(-(-some.size // _STRETCH) * _STRETCH)
        whole[: some.size] = some
        for sums in whole.reshape(-1, _STRETCH // _ABREAST, _ABREAST).sum(1):
            total += sums


def _ended(totals: Array) -> list[float]:
    while totals.shape[1] > 1:
        half = totals.shape[1] // 2
        totals = totals[:, :half] + totals[:, half:]
    found: list[float] = totals[:, 0].tolist()
    return found
