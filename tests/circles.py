"""Cosines, sines and π: in decimals, as precise as the context is (80 digits at most), and in rationals."""

from __future__ import annotations

import functools
from decimal import Decimal, localcontext
from fractions import Fraction

_BITS = 1400


def cosine(angle: Decimal) -> Decimal:
    """The series, of an angle from 0 to 2π."""
    total = term = Decimal(1)
    n = 0
    while abs(term) > Decimal(10) ** -70:
        n += 2
        term = -term * angle * angle / (n * (n - 1))
        total += term
    return total


def pi() -> Decimal:
    """Source: the recipes of the module decimal."""
    last, t, s, n, na, d, da = Decimal(0), Decimal(3), Decimal(3), 1, 0, 0, 24
    while s != last:
        last = s
        n, na = n + na, na + 8
        d, da = d + da, da + 32
        t = (t * n) / d
        s += t
    return s


def cosine_and_sine(angle: float) -> tuple[Fraction, Fraction]:
    """By the series of what is left of whole turns, in fixed point; within 2^-300."""
    over, under = angle.as_integer_ratio()
    x = (over << _BITS) // under % _turn()
    found, term, n = [0, 0], 1 << _BITS, 0
    while term:
        found[n % 2] += term if n % 4 < 2 else -term
        n += 1
        term = (term * x >> _BITS) // n
    return Fraction(found[0], 1 << _BITS), Fraction(found[1], 1 << _BITS)


@functools.cache
def _turn() -> int:
    with localcontext(prec=480):
        return int(2 * pi() * 2**_BITS)
