"""How far stored numbers may lie from the exact ones when nothing but rounding is at work.

With v the exact value, W the base's, Δ = v − W, S the sum of magnitudes of the terms of Δ (|s|·|B||A| for LoRA), and u
the unit roundoff, a right merge in one of the usual recipes stores a number within

    float32         h + (r + 8)·u32·(|W| + S)          products and sums in float32, rounded once
    rounded delta   ... + 3·u·|Δ|                       the change is rounded to the storage or adapter dtype on its way
    narrow factors  ... + 2·u·S                         so are the factors, before they are multiplied

of v, where h is half a unit in the last place, once for each adapter that is merged and stored by itself, and once more
where the numbers were stored in the base's dtype before they were cast to another. Where the
weight itself is multiplied the products are rounded too: V and m/‖V‖ of DoRA (4·u·S', with S' = (m/‖V‖)·(|W| + S)), and
(1 − α)·W and α·T, itself rounded, of an interpolation (2.5·u·S', with S' = |1 − α|·|W| + |α|·|T|).

Within these bounds a number may be right. Whether all together are is for verification.evidence to say.

Source: N. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 2. The
recipes are those of PEFT 0.21.2 and of others, which the tests run.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from adaptertool.codecs import BY_DTYPE, F32
from adaptertool.numerics.rounding import Array

RECIPES = ("float32", "rounded delta", "narrow factors")


class Values(NamedTuple):
    """Some elements, in float64: W, v, and the magnitudes |W| + S, or S'."""

    base: Array
    exact: Array
    terms: Array


class Manner(NamedTuple):
    """What a recipe's error depends on, beside the values."""

    dtype: str  # of the storage
    through: str  # the dtype that it may have been stored in before: the base's
    roundoff: float  # the largest of the storage and of the factors
    depth: int  # terms of the longest sum: the ranks
    roundings: int  # times that the weight may have been stored on the way
    smallest: float  # half the smallest number of the narrowest of the dtypes, times the scale of what is added
    products: float  # roundings of products with the weight itself: DoRA, (1 − α)·W


def half_ulp(size: Array, dtype: str) -> Array:
    """Half the distance between neighbours at that magnitude."""
    half: Array = BY_DTYPE[dtype].spacing(size) / 2
    return half


def least_normal(dtype: str) -> float:
    """The magnitude below which a dtype rounds by more than its roundoff, where numbers of factors and changes may be
    as small: 0 where its range is that of float32."""
    codec = BY_DTYPE[dtype]
    return math.ldexp(1.0, codec.lowest) if codec.lowest > F32.lowest else 0.0


def limits(values: Values, found: Array, manner: Manner) -> tuple[Array, ...]:
    """How far from the exact value a number may lie, by each recipe of RECIPES."""
    base, exact, terms = values
    moved, summed = abs(exact - base), np.maximum(terms - abs(base), 0)
    largest = np.maximum(abs(exact), abs(found))
    if manner.roundings > 1:  # what was stored on the way may have been larger
        largest = np.maximum(largest, terms)
    single = F32.roundoff * (manner.depth + 8) * terms + 2.0**-149
    plain = manner.roundings * half_ulp(largest, manner.dtype) * (1 + 2.0**-20) + single
    if manner.through != manner.dtype:
        plain += manner.roundings * half_ulp(largest, manner.through)
    least = plain + 3 * manner.smallest
    # The base may have been cast before anything was added to it.
    if BY_DTYPE[manner.dtype].roundoff > BY_DTYPE[manner.through].roundoff:
        least = least + (1 + manner.roundings) * half_ulp(largest, manner.dtype)
    delta = least + manner.roundoff * (3 * np.maximum(moved, summed * (manner.roundings > 1)) + manner.products * terms)
    return plain, delta, delta + 2 * manner.roundoff * summed
