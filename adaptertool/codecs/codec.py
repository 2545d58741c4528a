"""The record of a codec: how the numbers of a tensor are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from adaptertool.numerics.rounding import Array

_SINGLE = 24  # significant bits of float32


class Encode(Protocol):
    """`Codec.encode` as it is called."""

    def __call__(self, values: Array, error: float, relative: float, out: Array, *, quick: bool = False) -> Array: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How one dtype stores numbers: binary floating point with a sign, subnormal numbers among them.

    Stored numbers are arrays of `held`, one item for each number, whose bits without the sign are in the order of the
    magnitudes. Numbers are arrays of float32 or float64. All of it is little endian, as the files are.

    Codes whose scales are in other tensors are no dtype of their own: codecs.quantised.
    """

    name: str  # the dtype, as safetensors spells it
    held: np.dtype[Any]  # of what is stored, in memory
    digits: int  # significant bits of a normal number, the first of them not stored
    lowest: int  # exponent of the smallest normal number, 2^lowest
    largest: float  # finite number

    # (stored, out): out = the numbers, exactly; returns the largest magnitude, infinite or NaN if one of them is. Flat.
    decode: Callable[[Array, Array], float]

    # (values, error, relative, out): out = x − e as it is stored, rounded to nearest with ties to even; returns the
    # indices where x + e is stored otherwise, for e = error + relative·|x|. NaN stays NaN; values beyond the range are
    # infinite then, or NaN where there is no infinity. quick: a few more indices may be returned, and `out` is then
    # right where none is. Flat.
    encode: Encode

    @property
    def word(self) -> np.dtype[Any]:
        """Unsigned integers of the size of what is stored."""
        return np.dtype(f"u{self.held.itemsize}")

    @property
    def roundoff(self) -> float:
        """u = 2^−digits: how far a normal number is rounded at most, relatively."""
        return math.ldexp(1.0, -self.digits)

    @property
    def smallest(self) -> float:
        """The smallest number above 0."""
        return math.ldexp(1.0, self.lowest + 1 - self.digits)

    @property
    def wide(self) -> np.dtype[Any]:
        """float32 if that holds its numbers, else float64."""
        return np.dtype(np.float32 if self.digits <= _SINGLE else np.float64)

    @property
    def rounds(self) -> bool:
        """Whether float64 has more bits than are stored."""
        return self.digits < np.finfo(np.float64).nmant + 1

    def words(self, stored: Array) -> Array:
        """The bits of what is stored, as unsigned integers of the same shape: a view."""
        return stored.view(self.word)

    def spacing(self, values: Array) -> Array:
        """How far numbers are apart at these magnitudes, which are finite: the distance from a number that is stored to
        the next one away from 0. float64, of the shape of `values`."""
        exponent = np.frexp(np.maximum(abs(values), math.ldexp(1.0, self.lowest)))[1]
        step: Array = np.ldexp(1.0, exponent - self.digits)
        return step
