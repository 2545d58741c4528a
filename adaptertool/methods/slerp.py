"""Slerp: between two tensors along the arc, each tensor as one vector; t = 0 gives W, and t = 1 gives T.

With θ the angle between them:  sin((1 − t)·θ)/sin θ · W + sin(t·θ)/sin θ · T;  where they are nearly parallel (|cos θ|
over 0.9995, or one is 0) it is (1 − t)·W + t·T.
Source: K. Shoemake, "Animating rotation with quaternion curves" (1985); the bound is that of mergekit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from adaptertool.methods.method import Array, Method

_PARALLEL = 0.9995  # cosine; beyond it, a line takes the place of the arc


def along_the_arc(
    base: Array, changes: Sequence[Array], weights: Sequence[float], ours: float, theirs: float, product: float
) -> Array:
    """ours, theirs, product: ‖W‖², ‖T‖² and ⟨W, T⟩ of the whole tensor."""
    (change,), (t,) = changes, weights
    cosine = product / math.sqrt(ours * theirs) if ours > 0 and theirs > 0 else 1.0
    if abs(cosine) > _PARALLEL:
        return base + t * change
    angle = math.acos(cosine)
    one, other = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return one * base + other * (base + change)


SLERP = Method("slerp", along_the_arc, spans=True, dense=True, only=1)
