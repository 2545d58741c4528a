"""Quotients and roots of long numbers (numerics.digits), and the float64 next to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptertool.numerics.digits import WIDER, Digits
from adaptertool.numerics.error_free import two_sum
from adaptertool.numerics.places import LEAST_ERROR, LOWEST_PLACE, bound, times_power

Array = Any  # of float64

_STEPS = 6  # each of which finds 50 bits or so
_SURE = 1 - 2.0**-30  # times what is near a number, to be below it


def quotient(number: Digits, divisor: Digits) -> Digits:
    """The quotient q of x by positive numbers y, a few digits at a time: |x/y − q| = |x − q·y| / y."""
    exact, off = divisor.with_error(None), divisor.error
    found, left = Digits(np.broadcast_shapes(number.shape, divisor.shape), {}), number
    with np.errstate(all="ignore"):
        near = divisor.near()
        for _ in range(_STEPS):
            ratio = left.near() / near
            step = Digits.of(np.where(np.isfinite(ratio), ratio, 0.0))
            found, left = found + step, left - step * exact
            left.carry()
            if not left.places:
                break
        if off is None:
            return _off_by(found, left.size(), near * _SURE)
        return _off_by(found, left.size() + found.size() * off, near * _SURE - off)


def root(number: Digits) -> Digits:
    """√x of numbers that are not negative: |√x − s| = |x − s²| / (√x + s); of 0 it is 0, with an error that is not
    known."""
    with np.errstate(all="ignore"):
        near = np.sqrt(number.near())
        found = Digits.of(near)
        left = number - found * found
        for _ in range(_STEPS):
            left.carry()
            if not left.places:
                break
            found = found + Digits.of(np.where(near > 0, left.near() / (2 * near), 0.0))
            left = number - found * found
        return _off_by(found, left.size(), near * _SURE)


def _off_by(number: Digits, size: Array, divisor: Array) -> Digits:
    """The same with an error of size / divisor beside its own, infinite where the divisor is next to nothing."""
    error = bound(np.where(size == 0, 0.0, size / divisor * WIDER + LEAST_ERROR))
    error = error if number.error is None else (error + number.error) * WIDER
    error = np.where(divisor > LEAST_ERROR, error, np.inf)
    return number.with_error(error if error.any() else None)


def ends(number: Digits, *, odd: bool) -> tuple[Array, Array, Array]:
    """Both ends of the interval that holds each number, rounded to nearest, or to odd (as DoubleDouble.ends has them);
    and where they are known."""
    exact = number.with_error(None)
    if number.error is None:
        found, known = _rounded(exact, odd=odd)
        return found, found, known
    apart = Digits.of(number.error)
    sure = np.isfinite(number.error) & (True if apart.error is None else apart.error == 0)
    apart.error = None
    (below, low), (above, high) = (_rounded(exact.plus(apart, sign), odd=odd) for sign in (-1.0, 1.0))
    return below, above, low & high & sure


def _rounded(number: Digits, *, odd: bool) -> tuple[Array, Array]:
    """The float64 to nearest, or to odd, of exact numbers, and where it is known.

    From the highest digit down: what is left of each sum is a multiple of the place that it is left of, and so larger
    than all digits below, if it is not 0. So its sign is that of all that is left together.
    """
    number.carry()
    near, left, rest, part = (np.zeros(number.shape) for _ in range(4))
    known = np.ones(number.shape, bool)
    with np.errstate(all="ignore"):
        for place in sorted(number.places, reverse=True):
            if abs(place) > -LOWEST_PLACE:
                known &= number.places[place] == 0
            else:
                near, over = two_sum(near, times_power(number.places[place], place, part))
                if odd:
                    left += over
                else:
                    left, over = two_sum(left, over)
                    rest += over
        beyond = np.nextafter(near, np.inf * left, where=left != 0, out=near.copy())
        even = near.view(np.int64) & 1 == 0
        if odd:
            found = np.where(even, beyond, near)
        else:
            over = abs(left) - abs(beyond - near) / 2
            over = np.where(over == 0, rest * np.sign(left), over)
            found = np.where((over > 0) | ((over == 0) & ~even), beyond, near)
    return found, known & np.isfinite(beyond)
