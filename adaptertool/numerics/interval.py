"""Intervals of rationals: exact where the formula is rational, and as narrow as wanted where it holds a root."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.records import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval: the exact value lies in [low, high]; mostly both are one."""

    low: Fraction
    high: Fraction

    @classmethod
    def of(cls, number: float | Fraction) -> Interval:
        exact = Fraction(number)
        return cls(exact, exact)

    def __add__(self, other: Any) -> Interval:
        other = _interval(other)
        return Interval(self.low + other.low, self.high + other.high)

    __radd__ = __add__  # sum() begins with 0

    def __sub__(self, other: Any) -> Interval:
        other = _interval(other)
        return Interval(self.low - other.high, self.high - other.low)

    def __mul__(self, other: Any) -> Interval:
        other = _interval(other)
        if self.low == self.high and other.low == other.high:
            return Interval.of(self.low * other.low)
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Interval(min(ends), max(ends))

    def __truediv__(self, other: Interval) -> Interval:
        """The quotient by an interval of positive numbers. Raises ZeroDivisionError where it may be 0."""
        return self * Interval(1 / other.high, 1 / other.low)

    def sqrt(self, bits: int) -> Interval:
        """√ of what is not negative, to about `bits` bits relatively; exactly where it is rational."""
        return Interval(_root(max(self.low, Fraction(0)), bits)[0], _root(self.high, bits)[1])


def _interval(number: Any) -> Interval:
    return number if isinstance(number, Interval) else Interval.of(number)


def _root(number: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Rationals on both sides of √number, or √number twice."""
    top, bottom = math.isqrt(number.numerator), math.isqrt(number.denominator)
    if top * top == number.numerator and bottom * bottom == number.denominator:
        return Fraction(top, bottom), Fraction(top, bottom)
    shift = max(0, bits + (number.denominator.bit_length() - number.numerator.bit_length()) // 2 + 1)
    floor = math.isqrt((number.numerator << 2 * shift) // number.denominator)
    return Fraction(floor, 1 << shift), Fraction(floor + 1, 1 << shift)


intervals = np.frompyfunc(Interval.of, 1, 1)  # an array of floats, exactly


def roots(squares: Any, bits: int) -> Any:
    """The square roots of an array of Interval, of any shape, to about `bits` bits relatively."""
    return np.frompyfunc(lambda square: square.sqrt(bits), 1, 1)(squares)
