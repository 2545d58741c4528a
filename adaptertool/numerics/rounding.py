"""One correct rounding from float64 to the dtype that is stored: to nearest, ties to even, subnormals included.

torch converts float64 to bfloat16 and float16 by way of float32, which rounds twice: a value just beside the
middle of two neighbours is first pulled onto the middle and then goes to the even one. The result can only be
wrong where the float32 value stands exactly in the middle. Such elements are few (for bfloat16 one in 65,536
of arbitrary values), and they are rounded again by way of the *odd* float32 neighbour, which keeps the side.

Source: S. Boldo, G. Melquiond, "When double rounding is odd", IMACS 2005. The oracle in the tests is a
rounding of `fractions.Fraction`, written apart from this.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

# Low bits of a float32 that lies in the middle of two values of the dtype: (mask, value). For float16 the
# middle of two subnormals lies at a higher bit, so the test there is the weaker "the twelve low bits are 0".
_MIDDLE = {torch.bfloat16: (0xFFFF, 0x8000), torch.float16: (0x0FFF, 0x0000)}


class Rounder:
    """Rounds blocks of up to `size` float64 elements, with buffers of its own: one per thread."""

    def __init__(self, size: int) -> None:
        self._single = torch.empty(size, dtype=torch.float32)
        self._low = torch.empty(size, dtype=torch.int16)

    def __call__(self, values: Tensor, out: Tensor) -> None:
        """out = RN(values). Both flat and contiguous, of one length; `out` of the dtype to round to.

        Values beyond the range of the dtype become infinite; NaN stays NaN.
        """
        if out.dtype not in _MIDDLE:
            out.copy_(values)  # float32: one rounding in hardware; float64: none
            return
        single = self._single[: len(values)]
        single.copy_(values)
        out.copy_(single)
        suspects = self._suspects(single, *_MIDDLE[out.dtype])
        if len(suspects):
            out[suspects] = _round_to_odd(values[suspects]).to(out.dtype)

    def _suspects(self, single: Tensor, mask: int, middle: int) -> Tensor:
        low = self._low[: len(single)]
        low.copy_(single.view(torch.int32))  # keeps the low 16 bits
        bits = low.numpy().view(np.uint16)  # numpy finds them several times faster than torch here
        if mask != 0xFFFF:
            np.bitwise_and(bits, mask, out=bits)
        return torch.from_numpy(np.flatnonzero(bits == middle))


def _round_to_odd(values: Tensor) -> Tensor:
    """float64 → float32, where an inexact result is the neighbour whose last bit is 1."""
    single = values.to(torch.float32)
    bits = single.view(torch.int32)
    back = single.to(torch.float64)
    wrong = (back != values) & (bits & 1 == 0)
    step = torch.where(back.abs() > values.abs(), -1, 1).to(torch.int32)
    return torch.where(wrong, bits + step, bits).view(torch.float32)


def to_odd(value: Fraction) -> float:
    """The float64 next to `value` towards 0, with its last bit set if that is inexact: rounding it to a narrower
    dtype then is the rounding of `value` itself."""
    try:
        nearest = float(value)
    except OverflowError:
        return math.copysign(math.inf, value)
    if math.isinf(nearest) or Fraction(nearest) == value:
        return nearest
    if abs(Fraction(nearest)) > abs(value):
        nearest = math.nextafter(nearest, 0.0)
    if int(np.float64(nearest).view(np.int64)) & 1:
        return nearest
    return math.nextafter(nearest, math.copysign(math.inf, value))
