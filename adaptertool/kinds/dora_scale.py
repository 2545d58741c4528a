"""DoRA as kohya's tools and LyCORIS write it: V = W + s·B·A; W' = (m / ‖V‖)·V, with the norm of each row where m
(`dora_scale`) is (out, 1, ...), as in the paper, and of each column where it is (1, in, ...), as in LyCORIS before 3.2.

LyCORIS adds the smallest step of its dtype to the norm, against divisions by 0; that is not done here.
Source: LyCORIS 4.1.3 (functional/general.py), against which this is checked in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.kinds import lora
from adaptertool.kinds.dora import DORA, MAGNITUDE
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import made, whole
from adaptertool.kinds.spelling import Spelling
from adaptertool.spec.tensors import Ref

SCALE = "dora_scale"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """Factors as for LoRA; m (out, 1, ...) or (out,), or (1, in, 1, ...) for a matrix."""
    expected = lora.shapes(weight, factors)
    if expected is None:
        return None
    given, rows = factors[SCALE], (weight[0], *[1] * (len(weight) - 1))
    if given == (weight[0], *[1] * (len(given) - 1)):
        return {**expected, SCALE: given}
    by_column = (1, weight[1], *[1] * (len(given) - 2))
    if given == by_column:
        return {**expected, SCALE: given} if math.prod(weight[2:]) == 1 else None
    return {**expected, SCALE: rows}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """DoRA with m as a vector; where it belongs to columns, of the transpose: Wᵀ + s·Aᵀ·Bᵀ."""
    a, b, m = factors[A], factors[B], factors[SCALE]
    length = made([m], (m.spec.numel,), lambda read, first, last: whole(read, m).reshape(-1)[first:last])
    if m.shape[0] == weight[0] and (len(m.shape) == 1 or m.shape[1] == 1):
        return [Part(DORA.name, {A: a, B: b, MAGNITUDE: length}, scale)]
    rank, wide = a.shape[0], math.prod(weight[1:])
    turned_b = made([a], (wide, rank), lambda read, first, last: read(a, 0, rank).T[first:last])
    turned_a = made([b], (rank, weight[0]), lambda read, first, last: read(b, 0, weight[0]).T[first:last])
    return [Part(DORA.name, {A: turned_a, B: turned_b, MAGNITUDE: length}, scale, turned=True)]


DORA_SCALE = Kind(
    name="dora-scale",
    roles=frozenset({A, B, SCALE}),
    shapes=shapes,
    becomes=becomes,
    spellings={
        "kohya": Spelling(
            tag="DORA",
            keys={".lora_down.weight": A, ".lora_up.weight": B, ".dora_scale": SCALE},
            rank_of=lambda shapes: shapes[A][0],
        )
    },
)
