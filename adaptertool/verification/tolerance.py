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
from adaptertool.numerics.compiled import FUNCTIONS, address
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
    """How far from the exact value a number may lie, by each recipe of RECIPES. All flat."""
    if (call := FUNCTIONS.get("limits")) is not None:
        out = np.empty((len(RECIPES), found.size))
        constants = _constants(manner)  # has a name, so that it lives as long as the call
        call(*_addresses(values, found), found.size, constants.ctypes.data, *(part.ctypes.data for part in out))
        return tuple(out)
    base, exact, terms = values
    own = _Constants(*_constants(manner))
    moved, summed = abs(exact - base), np.maximum(terms - abs(base), 0)
    largest = np.maximum(abs(exact), abs(found))
    if manner.roundings > 1:  # what was stored on the way may have been larger
        largest = np.maximum(largest, terms)
    half = half_ulp(largest, manner.dtype)
    plain = manner.roundings * half * (1 + 2.0**-20) + (own.single * terms + own.tiny)
    if manner.through != manner.dtype:
        plain += manner.roundings * half_ulp(largest, manner.through)
    least = plain + 3 * manner.smallest + own.cast * half
    delta = least + manner.roundoff * (3 * np.maximum(moved, summed * own.often) + manner.products * terms)
    return plain, delta, delta + 2 * manner.roundoff * summed


def outside(values: Values, found: Array, manner: Manner) -> tuple[list[int], list[int]]:
    """For each recipe of RECIPES, how many numbers lie farther from the exact values than `limits` says, and the first
    of them, or as many as there are. All flat."""
    if (call := FUNCTIONS.get("outside")) is not None:
        counts, firsts = np.empty((2, len(RECIPES)), np.uint64)
        constants = _constants(manner)
        call(*_addresses(values, found), found.size, constants.ctypes.data, counts.ctypes.data, firsts.ctypes.data)
        return counts.tolist(), firsts.tolist()
    odd = [~(abs(found - values.exact) <= limit) for limit in limits(values, found, manner)]
    return [int(np.count_nonzero(one)) for one in odd], [int(np.append(one, True).argmax()) for one in odd]


class _Constants(NamedTuple):
    """What `limits` computes with, as kernel/statistics.h has them."""

    roundings: float
    least: float  # normal number of the dtype
    half: float  # half an ulp of a number from 1 to 2
    least_through: float
    half_through: float  # 0: the dtype is the same
    single: float  # of the terms, as float32 sums them up
    tiny: float
    smallest: float
    cast: float  # half ulps, where the base may have been cast before anything was added to it
    roundoff: float
    often: float  # whether what was stored on the way may have been larger
    products: float


def _constants(manner: Manner) -> Array:
    own, through = BY_DTYPE[manner.dtype], BY_DTYPE[manner.through]
    return np.array(
        _Constants(
            roundings=manner.roundings,
            least=math.ldexp(1.0, own.lowest),
            half=own.roundoff,
            least_through=math.ldexp(1.0, through.lowest),
            half_through=0.0 if own is through else through.roundoff,
            single=F32.roundoff * (manner.depth + 8),
            tiny=2.0**-149,
            smallest=manner.smallest,
            cast=1 + manner.roundings if own.roundoff > through.roundoff else 0,
            roundoff=manner.roundoff,
            often=manner.roundings > 1,
            products=manner.products,
        ),
        np.float64,
    )


def _addresses(values: Values, found: Array) -> list[int]:
    return [address(array, np.float64, found.size) for array in (*values, found)]
