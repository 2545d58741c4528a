"""Independent oracles: correct rounding by rationals, and a dense merge in rationals or float64.

Nothing here imports adaptertool.
"""

from __future__ import annotations

from fractions import Fraction

import torch

# (explicit mantissa bits, smallest normal exponent, largest finite value)
_FORMATS = {
    torch.bfloat16: (7, -126, Fraction(torch.finfo(torch.bfloat16).max)),
    torch.float16: (10, -14, Fraction(65504)),
    torch.float32: (23, -126, Fraction(torch.finfo(torch.float32).max)),
    torch.float64: (52, -1022, Fraction(torch.finfo(torch.float64).max)),
}


def round_fraction(value: Fraction, dtype: torch.dtype) -> Fraction | None:
    """To nearest, ties to even, subnormals included; None where that overflows."""
    bits, smallest, largest = _FORMATS[dtype]
    if value == 0:
        return value
    above, below = abs(value.numerator), value.denominator
    exponent = above.bit_length() - below.bit_length()
    if below << max(exponent, 0) > above << max(-exponent, 0):  # 2^exponent > |value|
        exponent -= 1
    place = max(exponent, smallest) - bits  # an ulp is 2^place
    ulps, rest = divmod(above << max(-place, 0), whole := below << max(place, 0))
    ulps += 2 * rest + (ulps & 1) > whole  # a half goes to the even one
    result = Fraction(ulps << max(place, 0), 1 << max(-place, 0)) * (-1 if value < 0 else 1)
    return result if abs(result) <= largest else None


def fractions(tensor: torch.Tensor) -> list[Fraction]:
    return [Fraction(value) for value in tensor.to(torch.float64).flatten().tolist()]


def half_ulp_excess(stored: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """|stored − exact| in units of half an ulp of the stored dtype, elementwise; 1 or less is a correct rounding.

    `exact` is float64. The ulp is that of the binade of `exact`.
    """
    bits, smallest, _ = _FORMATS[stored.dtype]
    exponent = torch.floor(torch.log2(exact.abs().clamp(min=2.0**-1000))).clamp(min=smallest)
    half = torch.exp2(exponent - bits - 1)
    return (stored.to(torch.float64) - exact).abs() / half
