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

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from adaptertool.numerics.rounding import Array

RECIPES = ("float32", "rounded delta", "narrow factors")

ROUNDOFF: Mapping[str, float] = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24, "F64": 2.0**-53}
# Half the smallest number, where numbers of factors and changes may be as small.
SMALLEST: Mapping[str, float] = {"F16": 2.0**-25}
# Significant bits, and the exponent of the smallest normal number.
_PRECISION: Mapping[str, tuple[int, int]] = {"BF16": (8, -126), "F16": (11, -14), "F32": (24, -126), "F64": (53, -1022)}


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
    bits, smallest = _PRECISION[dtype]
    exponent = np.maximum(np.frexp(size)[1] - 1, smallest)
    half: Array = np.ldexp(1.0, exponent - bits)
    return half


def limits(values: Values, found: Array, manner: Manner) -> tuple[Array, ...]:
    """How far from the exact value a number may lie, by each recipe of RECIPES."""
    base, exact, terms = values
    moved, summed = abs(exact - base), np.maximum(terms - abs(base), 0)
    largest = np.maximum(abs(exact), abs(found))
    if manner.roundings > 1:  # what was stored on the way may have been larger
        largest = np.maximum(largest, terms)
    single = ROUNDOFF["F32"] * (manner.depth + 8) * terms + 2.0**-149
    plain = manner.roundings * half_ulp(largest, manner.dtype) * (1 + 2.0**-20) + single
    if manner.through != manner.dtype:
        plain += manner.roundings * half_ulp(largest, manner.through)
    least = plain + 3 * manner.smallest
    if ROUNDOFF[manner.dtype] > ROUNDOFF[manner.through]:  # the base may have been cast before anything was added to it
        least = least + (1 + manner.roundings) * half_ulp(largest, manner.dtype)
    delta = least + manner.roundoff * (3 * np.maximum(moved, summed * (manner.roundings > 1)) + manner.products * terms)
    return plain, delta, delta + 2 * manner.roundoff * summed
