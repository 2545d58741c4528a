"""Cosines and π in decimals, as precise as the context is (80 digits at most)."""

from __future__ import annotations

from decimal import Decimal


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
