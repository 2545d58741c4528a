"""Sums and products of float64 with what rounding took from them, and what numerics.double_double makes of those: the
twins of kernel/double_double.h, of the same bits. Numbers are arrays (3, ...) of high, low and error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

UNIT = 2.0**-53
WIDER = 1 + 2.0**-40  # for the roundings of a bound itself
_SMALL, _LOST = 2.0**-900, 2.0**-1060  # products below may lose bits, of no more than that
_LANES = 16  # sums of a row, side by side


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """(s, r) with s = fl(a + b) and s + r = a + b exactly. Source: D. Knuth, TAOCP 2, section 4.2.2, theorem B."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """(p, r) with p = fl(a·b) and p + r = a·b, exactly where nothing under- or overflows. Source: T. Dekker, Numerische
    Mathematik 18 (1971), 224-242."""
    p, c, d = a * b, 134217729.0 * a, 134217729.0 * b
    ah, bh = c - (c - a), d - (d - b)
    al, bl = a - ah, b - bh
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def sum_of(x: Array, y: Array) -> Array:
    """x + y."""
    (s, t), (v, w) = two_sum(x[0], y[0]), two_sum(x[1], y[1])
    c, d = two_sum(t, v)
    high, r = two_sum(s, c)
    g = d + w
    f, dropped = two_sum(r, g)
    error = (x[2] + y[2] + abs(dropped) + UNIT * abs(g)) * WIDER
    return np.stack([*two_sum(high, f), error])


def product_of(x: Array, y: Array) -> Array:
    """x·y."""
    (p, p2), (m, m2), (n, n2) = two_product(x[0], y[0]), two_product(x[0], y[1]), two_product(x[1], y[0])
    a, a2 = two_sum(m, n)
    b, b2 = two_sum(p2, a)
    high, r = two_sum(p, b)
    both = x[1] * y[1]
    g = (a2 + b2) + (m2 + n2) + both
    sizes = (abs(a2) + abs(b2)) + (abs(m2) + abs(n2)) + abs(both)
    f, dropped = two_sum(r, g)
    own, other = abs(x[0]) + abs(x[1]), abs(y[0]) + abs(y[1])
    given = own * y[2] + other * x[2] + x[2] * y[2]
    off = (x[2] + y[2] != 0) & (own + x[2] != 0) & (other + y[2] != 0)
    inexact = off | ((x[1] != 0) & (y[1] != 0))
    lost = _unsafe(x[0], y[0], p) + _unsafe(x[0], y[1], m) + _unsafe(x[1], y[0], n) + np.where(inexact, _LOST, 0.0)
    error = (given + abs(dropped) + 8 * UNIT * sizes) * WIDER + lost
    return np.stack([*two_sum(high, f), error])


def _unsafe(x: Array, y: Array, p: Array) -> Array:
    return np.where((x != 0) & (y != 0) & (abs(p) < _SMALL), _LOST, 0.0)


def dot_of(left: Array, right: Array) -> Array:
    """The sums over k of left[k]·right[k]: left (3, n, r, 1) or (3, 1, r, columns), right (r, columns); each product
    and sum is split, and what is split off is summed in float64 (T. Ogita, S. Rump, S. Oishi, SIAM J. Sci. Comput. 26
    (2005), algorithm 5.3)."""
    _, rows, rank, _ = left.shape
    total, rest, sizes, given = np.zeros((4, rows, right.shape[1]))
    least = [abs(x[x != 0]).min(initial=np.inf) for x in (left[:2], right)]
    exact = not left[2].any() and least[0] * least[1] >= _SMALL
    if exact and left.shape[3] == 1 and not left[1].any() and _narrow(left[0], 24) and _narrow(right, 29):
        for k in range(rank):  # the products are exact: all sums are split
            total, part = two_sum(total, left[0, :, k] * right[k])
            rest, dropped = two_sum(rest, part)
            given += abs(dropped)
        return np.stack([*two_sum(total, rest), given * WIDER])
    plain = (left[1:] == 0).all((0, 2)) if left.shape[3] == 1 else np.zeros((rows, 1), bool)
    for k in range(rank):
        (high, low, error), a = left[:, :, k], right[k]
        (p, p2), second = two_product(high, a), low * a
        total, s2 = two_sum(total, p)
        beside = p2 + second
        t = beside + s2
        rest = rest + t
        # Where it is plain, in the order of the kernel: the bound, too, has the same bits.
        few, many = abs(t) + abs(rest), (abs(second) + abs(beside)) + (abs(t) + abs(rest))
        sizes += np.where(plain, few, many)
        given += error * abs(a)
    lost = 0.0 if exact else rank * _LOST
    return np.stack([*two_sum(total, rest), (given + UNIT * sizes) * WIDER + lost])


def _narrow(x: Array, bits: int) -> bool:
    """Whether the last `bits` bits of all numbers are 0: products of 29 bits and 24 are exact."""
    return not np.bitwise_or.reduce(np.ascontiguousarray(x).view(np.uint64), axis=None) & np.uint64((1 << bits) - 1)


def total_of(x: Array) -> Array:
    """The sum of each row of (3, n, columns): (3, n)."""
    _, rows, columns = x.shape
    sums = np.zeros((3, rows, _LANES))
    for start in range(0, columns, _LANES):
        part = x[:, :, start : start + _LANES]
        width = part.shape[2]
        sums[:, :, :width] = sum_of(sums[:, :, :width], part)
    width = _LANES // 2
    while width:
        sums = sum_of(sums[:, :, :width], sums[:, :, width : 2 * width])
        width //= 2
    return sums[:, :, 0]


def ends_of(x: Array, *, odd: bool) -> tuple[Array, Array]:
    """high + low ± error, beyond in both directions where that is no float64, and rounded to nearest, or to odd."""
    found = []
    for side in (-1.0, 1.0):
        end, rest = two_sum(x[1], side * x[2])
        end = end + np.where(side * rest > 0, side * (abs(end) * 2.0**-52 + 2.0**-1074), 0.0)
        nearest, rest = two_sum(x[0], end)
        bits = nearest.view(np.int64)
        step = np.where((rest > 0) == (nearest > 0), 1, -1)
        found.append(np.where((rest != 0) & (bits & 1 == 0), bits + step, bits).view(np.float64) if odd else nearest)
    return found[0], found[1]
