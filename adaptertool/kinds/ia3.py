"""(IA)³: rows of a weight, and of its bias, times a number each, W' = W + w·(l ⊙ W − W); of the layers that
feedforward_modules names columns instead, and no bias.

Source: H. Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning"
(arXiv:2205.05638). Checked against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.gain import GAIN, G
from adaptertool.kinds.kind import Becomes, Kind, Misreading, Part, Shape
from adaptertool.kinds.made import made, whole
from adaptertool.kinds.misreadings import on_other_side, with_factor
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

L = "ia3_l"
_INPUTS, _BIAS = "ia3_inputs", "ia3_bias"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:  # noqa: ARG001
    """l (out, 1) for a weight (out, in); of a convolution in two or three dimensions (1, out, 1, 1, ...)."""
    if len(weight) == 2:
        return {L: (weight[0], 1)}
    return {L: (1, weight[0], *[1] * (len(weight) - 2))} if len(weight) in (4, 5) else None


def shapes_of_inputs(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """l (1, in); of a convolution (1, in, 1, 1, ...), where a weight of g groups has in/g columns."""
    if len(weight) not in (2, 4, 5):
        return None
    inputs = weight[1]
    if len(weight) > 2 and len(factors[L]) > 1 and inputs and factors[L][1] % inputs == 0:
        groups = factors[L][1] // inputs
        inputs *= groups if groups and weight[0] % groups == 0 else 1
    return {L: (1, inputs, *[1] * (len(weight) - 2))}


def shapes_of_bias(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """l as for the weight of the layer, for a bias (out,)."""
    if len(weight) != 1:
        return None
    return {L: (weight[0], 1) if len(factors[L]) == 2 else (1, weight[0], *[1] * (len(factors[L]) - 2))}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """The gain that is l[o] in row o."""
    inner = math.prod(weight[1:])

    def rows(read: ReadRows, first: int, last: int) -> Array:
        return np.broadcast_to(whole(read, factors[L]).reshape(-1, 1)[first:last], (last - first, inner))

    def columns(read: ReadRows, first: int, last: int) -> Array:
        return np.broadcast_to(whole(read, factors[L]).reshape(1, -1), (last - first, weight[0]))

    return [Part(GAIN.name, {G: made(factors.values(), weight, rows, columns, finite=True)}, 1.0)]


def becomes_of_inputs(
    factors: Mapping[str, Ref],
    weight: Shape,
    scale: float,  # noqa: ARG001
    settings: Mapping[str, Any],  # noqa: ARG001
) -> Sequence[Part]:
    """The gain that is l[i] in column i; in the rows of group j of a convolution l[j·in/g + i]."""
    kernel, groups = math.prod(weight[2:]), math.prod(factors[L].shape) // weight[1]

    def rows(read: ReadRows, first: int, last: int) -> Array:
        wide = np.repeat(whole(read, factors[L]).reshape(groups, weight[1]), kernel, axis=1)
        return wide[np.arange(first, last) // (weight[0] // groups)]

    def columns(read: ReadRows, first: int, last: int) -> Array:
        return np.broadcast_to(whole(read, factors[L]).reshape(-1, 1)[first:last], (last - first, weight[0]))

    return [Part(GAIN.name, {G: made(factors.values(), weight, rows, columns, finite=True)}, 1.0)]


def _one_added(own: Becomes) -> Misreading:
    """As LyCORIS has it."""
    return with_factor(own, "one-added", f"it is multiplied with 1 + {L}", L, lambda numbers: numbers + 1)


IA3 = Kind(
    name="ia3",
    roles=frozenset({L}),
    by_row=frozenset({L}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    misreadings=(_one_added(becomes), on_other_side(becomes_of_inputs)),
    spellings={
        "peft": Spelling(
            tag="IA3",
            keys={f".{L}": L},
            rank=None,
            alpha=None,
            bias=_BIAS,
            instead=("feedforward_modules", _INPUTS),
            harmless=frozenset({"init_ia3_weights"}),
        )
    },
)
IA3_INPUTS = Kind(
    name=_INPUTS,
    roles=frozenset({L}),
    shapes=shapes_of_inputs,
    becomes=becomes_of_inputs,
    of_weight=True,
    misreadings=(_one_added(becomes_of_inputs), on_other_side(becomes)),
)
IA3_BIAS = Kind(
    name=_BIAS,
    roles=frozenset({L}),
    by_row=frozenset({L}),
    shapes=shapes_of_bias,
    becomes=becomes,
    of_weight=True,
    misreadings=(_one_added(becomes),),
)
