"""Exact matrices of dyadic rationals: integers of any size times one power of two. Much quicker than rationals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt


class Dyadic:
    """bits·2^exponent, for an object array of Python integers."""

    __slots__ = ("bits", "exponent")
    __array_ufunc__ = None  # numpy leaves mixed operations to us
    __iadd__ = None  # += would leave the rows as they are, and call something else by their name

    def __init__(self, bits: Any, exponent: int) -> None:
        self.bits, self.exponent = bits, exponent

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Dyadic:
        """The finite float64 `values`, of any shape, exactly."""
        fraction, exponent = np.frexp(values)
        unit = int(exponent.min(initial=1024)) - 53
        places = (exponent.astype(np.int64) - 53 - unit).astype(object)
        return cls((fraction * 2.0**53).astype(np.int64).astype(object) << places, unit)

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.bits.shape
        return shape

    def __add__(self, other: Dyadic) -> Dyadic:
        unit = min(self.exponent, other.exponent)
        bits = (self.bits << (self.exponent - unit)) + (other.bits << (other.exponent - unit))
        return Dyadic(bits, unit)

    def __mul__(self, other: Fraction | Dyadic) -> Dyadic:
        """The product with a dyadic rational, or element by element."""
        if isinstance(other, Dyadic):
            return Dyadic(self.bits * other.bits, self.exponent + other.exponent)
        return Dyadic(self.bits * other.numerator, self.exponent - (other.denominator.bit_length() - 1))

    def __matmul__(self, other: Dyadic) -> Dyadic:
        return Dyadic(self.bits @ other.bits, self.exponent + other.exponent)

    def __getitem__(self, key: Any) -> Dyadic:
        return Dyadic(self.bits[key], self.exponent)

    def sum(self, axis: int) -> Dyadic:
        return Dyadic(self.bits.sum(axis), self.exponent)

    def item(self) -> Fraction:
        return int(self.bits.item()) * Fraction(2) ** self.exponent
