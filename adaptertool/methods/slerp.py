"""Slerp: between two tensors along the arc, each tensor as one vector; t = 0 gives W, and t = 1 gives T.

With θ the angle between them:  sin((1 − t)·θ)/sin θ · W + sin(t·θ)/sin θ · T;  where they are nearly parallel (|cos θ|
over 0.9995, or one is 0) it is (1 − t)·W + t·T. That bound is mergekit's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.methods.method import Array, Block, Method, Survey, always
from adaptertool.methods.setting import Settings
from adaptertool.numerics.elementary import acos, sin

_PARALLEL = 0.9995  # cosine; beyond it, a line takes the place of the arc


class Sums(NamedTuple):
    """Sums over a whole tensor W, and T, which the one source makes of it."""

    base: float  # ‖W‖²
    tuned: float  # ‖T‖²
    product: float  # ⟨W, T⟩


def sums_of(survey: Survey) -> Sums:
    """The sums, in parts of fixed size and in order."""

    def products(block: Block) -> tuple[Array, ...]:
        tuned = block.base + block.changes[0]
        return block.base * block.base, tuned * tuned, block.base * tuned

    return Sums(*survey.sums(products))


def along_the_arc(
    base: Array, changes: Sequence[Array], weights: Sequence[float], _settings: Settings, sums: Sums
) -> Array:
    """The block of the arc's point at t, the only weight; the angle is that of the whole tensors, by their sums."""
    (change,), (t,) = changes, weights
    cosine = sums.product / _root_of_product(sums.base, sums.tuned) if sums.base > 0 and sums.tuned > 0 else 1.0
    if abs(cosine) > _PARALLEL:
        return base + t * change
    angle = acos(np.array(cosine))
    one, other = sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)
    return one * base + other * (base + change)


def _root_of_product(one: float, other: float) -> float:
    """√(one·other) of positive numbers; by their roots where the product is not in the normal range of float64."""
    product = one * other
    if sys.float_info.min <= product < math.inf:
        return math.sqrt(product)
    return math.sqrt(one) * math.sqrt(other)


SLERP = Method(
    name="slerp",
    source='K. Shoemake, "Animating rotation with quaternion curves" (1985)',
    combine=along_the_arc,
    survey=sums_of,
    only=1,
    elementwise=always,
)
