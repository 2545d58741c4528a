"""Cosines and sines of parts of a turn, correctly rounded: the same on every machine, whatever its libraries."""

from __future__ import annotations

import functools

import numpy as np

from adaptertool.numerics.rounding import Array

_BITS = 224  # after the point, on the way
_KEPT = 160  # after the point: what is rounded to float64


@functools.lru_cache(maxsize=16)
def circle(count: int) -> tuple[Array, Array]:
    """cos(2πj/count) and sin(2πj/count) for j from 0 on, float64 (count,), each the nearest to the true value.

    In integers: the powers of z = exp(2πi/count), one after the other, in fixed point. Each product errs by less than
    2^(2 − _BITS), so power j by less than j·2^(3 − _BITS); for fewer than 2⁵⁰ points that is below half of the last bit
    that is kept, so 0, ±1/2 and ±1 are exact. A value that lies nearer to the middle of two float64 than 2^-_KEPT
    would be rounded either way; none of others than these is so near by chance, with 2⁵⁰ points and 107 further bits.
    """
    real, imaginary = _root(count)
    x, y, drop = 1 << _BITS, 0, _BITS - _KEPT
    half, one = 1 << (drop - 1), 1 << _KEPT
    cosines, sines = np.empty(count), np.empty(count)
    for j in range(count):
        cosines[j], sines[j] = ((x + half) >> drop) / one, ((y + half) >> drop) / one  # division rounds correctly
        x, y = (x * real - y * imaginary) >> _BITS, (x * imaginary + y * real) >> _BITS
    cosines.flags.writeable = sines.flags.writeable = False
    return cosines, sines


def _root(count: int) -> tuple[int, int]:
    """exp(2πi/count) in fixed point, by the series of the exponential."""
    more = 64
    one = 1 << (_BITS + more)
    angle = 2 * pi(_BITS + more) // count
    x, y, term, n = one, 0, one, 0
    while term:
        n += 1
        term = (term * angle >> (_BITS + more)) // n
        sign = 1 if n % 4 in (0, 1) else -1
        if n % 2:
            y += sign * term
        else:
            x += sign * term
    return x >> more, y >> more


def pi(bits: int) -> int:
    """π·2^bits, but for the last few bits. Source: J. Machin: π/4 = 4·arctan(1/5) − arctan(1/239)."""

    def arctan(inverse: int) -> int:
        term = (1 << (bits + 16)) // inverse
        total, n = 0, 1
        while term:
            total += term // n if n % 4 == 1 else -(term // n)
            term //= inverse * inverse
            n += 2
        return total

    return 4 * (4 * arctan(5) - arctan(239)) >> 16
