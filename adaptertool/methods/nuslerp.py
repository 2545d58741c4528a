"""NuSLERP: between two directions along the arc, at t = w₁/(w₀ + w₁), or ½ where the weights add up to nothing.

(sin((1 − t)·θ)·v₀ + sin(t·θ)·v₁)/sin θ, with θ the angle between v₀ and v₁; (1 − t)·v₀ + t·v₁ where sin θ < 10⁻⁸.
vᵢ = Tᵢ − W, and W is added; with `around_zero` vᵢ = Tᵢ. A tensor is one vector, or with `vectors` each of its rows or
of its columns is.

Source: "nuslerp" of mergekit 0.1.5, against which it is checked in the tests; its `nuslerp_flatten: false` is rows, and
with `nuslerp_row_wise: true` columns, where a tensor has two dimensions; of more the vectors lie along the last, or
all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.methods.method import Array, Block, Method, Survey
from adaptertool.methods.multislerp import AROUND_ZERO
from adaptertool.methods.setting import Setting, Settings, only
from adaptertool.numerics.elementary import acos, sin

_LEAST_NORM, _PARALLEL, _LEAST_WEIGHT = 1e-7, 1e-8, 1e-6

TENSOR, ROWS, COLUMNS = 0, 1, 2
VECTORS = Setting(
    number=int,
    least=TENSOR,
    most=COLUMNS,
    allowed="0 for the tensor, 1 for each row, 2 for each column",
    default=TENSOR,
    help="What is one vector: the tensor (0), each row (1), each column (2).",
)


class Whole(NamedTuple):
    """‖v₀‖², ‖v₁‖² and ⟨v₀, v₁⟩ of the tensor, or of each column; None for rows, which blocks hold whole."""

    sums: Array | None
    columns: int


def sums_of(survey: Survey) -> Whole:
    """The inner products, added up block by block in order."""
    kind, columns = only(survey.settings, "vectors"), survey.columns
    if kind == ROWS:
        return Whole(None, columns)

    def products(block: Block) -> tuple[Array, ...]:
        one, other = _vectors(block.base, block.changes, survey.settings)
        return one * one, other * other, one * other

    if kind == TENSOR:
        return Whole(np.array(survey.sums(products))[:, None], columns)
    total = np.zeros((3, columns))
    for sums in survey.each(lambda block: [one.reshape(-1, columns).sum(axis=0) for one in products(block)]):
        total += sums
    return Whole(total, columns)


def _vectors(base: Array, changes: Sequence[Array], settings: Settings) -> tuple[Array, Array]:
    one, other = changes
    return (base + one, base + other) if only(settings, "around_zero") else (one, other)


def between(base: Array, changes: Sequence[Array], weights: Sequence[float], settings: Settings, whole: Whole) -> Array:
    """The block of the arc's point at t."""
    one, other = _vectors(base, changes, settings)
    total = sum(weights)
    t = weights[1] / total if abs(total) >= _LEAST_WEIGHT else 0.5
    if whole.sums is None:
        rows = [part.reshape(-1, whole.columns).sum(axis=1) for part in (one * one, other * other, one * other)]
        first, second = (np.repeat(times, whole.columns) for times in _times(np.array(rows), t))
    else:
        first, second = _times(whole.sums, t)
        if len(first) == 1:
            first, second = first[0], second[0]
        else:
            first, second = (np.tile(times, len(one) // whole.columns) for times in (first, second))
    point: Array = first * one + second * other
    return point if only(settings, "around_zero") else base + point


def _times(sums: Array, t: float) -> tuple[Array, Array]:
    """What v₀ and v₁ are multiplied by. sums: ‖v₀‖², ‖v₁‖² and ⟨v₀, v₁⟩ of each vector, float64 (3, vectors)."""
    one, other, product = sums
    norms = np.maximum(np.sqrt(one), _LEAST_NORM) * np.maximum(np.sqrt(other), _LEAST_NORM)
    angle = acos(np.clip(product / norms, -1, 1))
    sine = sin(angle)
    line = abs(sine) < _PARALLEL
    divisor = np.where(line, 1, sine)
    return (
        np.where(line, 1 - t, sin((1 - t) * angle) / divisor),
        np.where(line, t, sin(t * angle) / divisor),
    )


NUSLERP = Method(
    name="nuslerp",
    source='K. Shoemake, "Animating rotation with quaternion curves" (1985), with the weights of mergekit',
    combine=between,
    settings={"vectors": VECTORS, "around_zero": AROUND_ZERO},
    survey=sums_of,
    rows=True,
    only=2,
    elementwise=lambda settings: only(settings, "vectors") == TENSOR,
)
