"""Where float64 arithmetic has no error at all: what is a multiple of 2^grain, and smaller than 2^(grain + 53)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_MANTISSA = (1 << 52) - 1  # bits of a float64
_NONE = 1 << 20  # of zeros, which are multiples of anything


def grain_of(values: npt.NDArray[Any]) -> int:
    """The grain of finite float64 values of any shape: that of their lowest bit, or somewhat less."""
    if not values.size:
        return _NONE
    bits = np.ascontiguousarray(values).reshape(-1).view(np.int64)
    mantissa, exponent = bits & _MANTISSA, (bits >> 52) & 0x7FF
    exponent[(exponent == 0) & (mantissa != 0)] = 1
    exponent[exponent == 0] = _NONE
    lowest = mantissa & -mantissa
    lowest[lowest == 0] = 1 << 52
    return min(_NONE, int(exponent.min()) - 1075 + int(lowest.min()).bit_length() - 1)


def powers_of(values: npt.NDArray[Any], axis: int) -> npt.NDArray[np.float64]:
    """The largest power of two of which all numbers of each row (axis 1) or column (axis 0) of a matrix of finite
    float64 values are multiples, or 2^900 where that is larger."""
    fraction, exponent = np.frexp(values)
    whole = (fraction * 2.0**53).astype(np.int64)
    lowest = np.frexp((whole & -whole).astype(np.float64))[1] - 54
    each = np.where(whole == 0, _NONE, exponent + lowest).min(axis=axis, initial=_NONE)
    powers: npt.NDArray[np.float64] = np.ldexp(1.0, np.minimum(each, 900))
    return powers
