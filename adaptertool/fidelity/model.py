"""How much drift rounding explains.

Storing or computing a number x in a dtype with p significant bits moves it by at most u·|x|, u = 2^-p; over many
numbers, half an ulp uniformly, by u·|x|/√3 in the root mean square where mantissas are small, and by less where they
are large. Errors of many roundings are taken as independent, so their squares add up, and those of one factor go on
through the other: with independent errors of the size e·|w_ij| in a weight, E‖x·δWᵀ‖² = e²·Σ_j ‖x_j‖²·‖w_j‖².
A sum of n products in order, with unit roundoff v, adds v²·n/6·Σ(products²): its partial sums grow like √k.
What is measured is suspect where it is more than MARGIN times the root of the sum of all that: the model itself lies
above what is found (by 1.2 to 2 times in the tests), and never was below it.

Sources: N. Higham, T. Mary, "A new approach to probabilistic rounding error analysis" (SIAM J. Sci. Comput. 41, 2019);
N. Higham, Accuracy and Stability of Numerical Algorithms (2002), chapters 2 to 4.
"""

from __future__ import annotations

import math

from adaptertool.codecs import BY_DTYPE

MARGIN = 2.0  # times the error that is expected, root of the sum of squares
_SIGMAS = 6.0  # how far a mean over many elements may be from what is expected


def unit(dtype: str) -> float:
    """u: how far a number is rounded at most, relatively."""
    return BY_DTYPE[dtype].roundoff


def coarser(one: str, other: str) -> str:
    """The one of two dtypes which rounds by more."""
    return max(one, other, key=unit)


def rounding(dtype: str, energy: float, count: float = 0.0) -> float:
    """The expected sum of squared errors from rounding numbers with this sum of squares once: u²·energy/3; and where
    they are subnormal, half of the smallest number for each of `count`."""
    codec = BY_DTYPE[dtype]
    return (codec.roundoff**2 * energy + (codec.smallest / 2) ** 2 * count) / 3


def summing(dtype: str, length: int, energy: float) -> float:
    """The expected sum of squared errors from adding up `length` products, whose squares add up to `energy`: in
    float32, or in float64 where `dtype` is."""
    return unit("F64" if dtype == "F64" else "F32") ** 2 * length / 6 * energy


def explains(variance: float, measured: float) -> bool:
    """Whether rounding with this expected sum of squares explains the root of the sum that was measured."""
    return measured <= MARGIN * math.sqrt(variance)


def survival_slack(dtype: str, noise: float, count: int) -> float:
    """How far the survival of an honest merge is from that of the exact one: errors that are independent of the update
    average out over `count` elements, and the scale itself may have been rounded."""
    return 4 * unit(dtype) + _SIGMAS * noise / math.sqrt(max(count, 1))
