"""Exact arithmetic on dyadic rationals, modulo a power of two: what tells on which side of a middle a value lies.

A float is an integer times a power of two, and so are sums and products of floats. Their integers may have hundreds
of bits; kept modulo 2^64 they fit a machine word, and addition and multiplication stay right modulo 2^64. Where it is
known from floating-point arithmetic that a difference is smaller than 2^62 units, the residue is the difference.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptertool.numerics.double_double import DoubleDouble

Integers = npt.NDArray[np.int64]
_UNIT = 1 << 20  # the exponent of zero: far above that of any float, so that it never is the smaller one


class Residue:
    """An array of numbers: bits·2^exponent, bits modulo 2^64. Exponents broadcast over the last two dimensions."""

    __slots__ = ("bits", "exponent")
    __array_ufunc__ = None  # numpy leaves mixed operations to us

    def __init__(self, bits: Integers, exponent: Integers) -> None:
        self.bits, self.exponent = bits, exponent

    @classmethod
    def of(cls, values: npt.NDArray[np.float64], axis: int | tuple[int, int] = (1, 2)) -> Residue:
        """Finite float64 values, exactly, with one exponent along `axis`: of (n, ., .) one for each of the n."""
        fraction, exponent = np.frexp(values)
        bits = (fraction * 2.0**53).astype(np.int64)
        low = bits & -bits  # the lowest bit that is set
        shift = np.frexp(low.astype(np.float64))[1].astype(np.int64) - 1
        place = np.where(bits == 0, _UNIT, exponent.astype(np.int64) - 53 + shift)
        unit = place.min(axis=axis, keepdims=True, initial=_UNIT)
        return cls(_shifted(bits >> np.where(bits == 0, 0, shift), place - unit), unit)

    @property
    def ndim(self) -> int:
        return self.bits.ndim

    def __add__(self, other: Residue) -> Residue:
        unit = np.minimum(self.exponent, other.exponent)
        bits = _shifted(self.bits, self.exponent - unit) + _shifted(other.bits, other.exponent - unit)
        return Residue(bits, unit)

    def __iadd__(self, other: Residue) -> Residue:
        self[...] = self + other
        return self

    def __sub__(self, other: Residue) -> Residue:
        return self + Residue(-other.bits, other.exponent)

    def __mul__(self, other: Fraction | Residue) -> Residue:
        """The product with a dyadic rational, or element by element."""
        if isinstance(other, Residue):
            return Residue(self.bits * other.bits, self.exponent + other.exponent)
        bits = (other.numerator + 2**63) % 2**64 - 2**63
        return Residue(self.bits * np.int64(bits), self.exponent - (other.denominator.bit_length() - 1))

    def __matmul__(self, other: Residue) -> Residue:
        products = self.bits * other.bits.swapaxes(1, 2)
        return Residue(products.sum(axis=2, keepdims=True), self.exponent + other.exponent)

    def __getitem__(self, key: Any) -> Residue:
        return Residue(self.bits[key], self.exponent[key])

    def __setitem__(self, key: Any, other: Residue) -> None:
        if key is Ellipsis:
            self.bits, self.exponent = other.bits, other.exponent
        else:
            self.bits[key], self.exponent[key] = other.bits, other.exponent

    @property
    def T(self) -> Residue:  # as numpy has it
        return Residue(self.bits.T, self.exponent.T)

    def copy(self) -> Residue:
        return Residue(self.bits.copy(), self.exponent.copy())

    def signs(self, bound: npt.NDArray[np.float64]) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """The sign of each number, and whether it is certain, flat, for numbers that are no larger than their `bound`
        (n,)."""
        with np.errstate(over="ignore"):
            certain = bound < np.ldexp(1.0, np.clip(self.exponent.reshape(-1) + 62, -1080, 1020).astype(np.int32))
        return np.sign(self.bits).reshape(-1), certain

    def values(self, bound: npt.NDArray[np.float64]) -> DoubleDouble:
        """The numbers themselves, flat, where they are certain to be no larger than their `bound` (n,) and float64 has
        their last bit; the others with an infinite error."""
        _, certain = self.signs(bound)
        exponent = self.exponent.reshape(-1)
        certain &= (exponent >= -1074) & (exponent <= 900)
        bits = np.where(certain, self.bits.reshape(-1), 0)
        high = bits.astype(np.float64)
        low = (bits - high.astype(np.int64)).astype(np.float64)
        place = np.where(certain, exponent, 0).astype(np.int32)
        return DoubleDouble(np.stack([np.ldexp(high, place), np.ldexp(low, place), np.where(certain, 0.0, np.inf)]))


def _shifted(bits: Integers, places: Integers) -> Integers:
    """bits·2^places modulo 2^64, for places ≥ 0."""
    return np.where(places > 63, 0, bits << np.minimum(places, 63))
