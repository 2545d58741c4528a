"""(IA)³ of LyCORIS: W' = W + w·(W ⊙ l), where l has a number for each output row, or with `on_input` for each input
column: other than with PEFT it is added to 1.

Source: LyCORIS 4.1.3 (modules/ia3.py), against whose forward pass this is checked in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import MismatchError, shown
from adaptertool.kinds.hira import HIRA, A, B
from adaptertool.kinds.kind import Change, Kind, Misreading, Part, Shape
from adaptertool.kinds.made import made, whole
from adaptertool.kinds.misreadings import is_square, with_factor
from adaptertool.kinds.spelling import Spelling
from adaptertool.spec.tensors import Ref

L, ON_INPUT = "weight", "on_input"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """l (out,) or (in,) for a weight (out, in); of a convolution (1, out, 1, ...) or (1, in, 1, ...)."""
    if len(weight) < 2:
        return None
    ones = (1,) * (len(weight) - 2)
    fitting = [(1, size, *ones) if ones else (size,) for size in weight[:2]]
    return {L: factors[L] if factors[L] in fitting else fitting[0]}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """HiRA of rank 1, one of whose factors is 1 throughout. Raises MismatchError where l is for the other side."""
    (numbers,), by_column = factors.values(), bool(settings[ON_INPUT])
    if math.prod(numbers.shape) != weight[by_column]:
        side = "inputs" if by_column else "outputs"
        raise MismatchError(
            f"{numbers.path}: {shown(numbers.spec.name)} is {numbers.spec}, and {ON_INPUT} says that it is for the "
            f"{weight[by_column]} {side} of the layer"
        )
    kernel, wide = math.prod(weight[2:]), math.prod(weight[1:])
    if by_column:
        b = made([numbers], (weight[0], 1), lambda _, first, last: np.ones((last - first, 1)))
        a = made([numbers], (1, wide), lambda read, *_: np.repeat(whole(read, numbers).reshape(1, -1), kernel, axis=1))
    else:
        b = made([numbers], (weight[0], 1), lambda read, first, last: whole(read, numbers).reshape(-1, 1)[first:last])
        a = made([numbers], (1, wide), lambda *_: np.ones((1, wide)))
    return [Part(HIRA.name, {B: b, A: a}, 1.0)]


def _other_side(change: Change) -> Sequence[Part]:
    settings = {**change.settings, ON_INPUT: not change.settings[ON_INPUT]}
    return becomes(change.factors, change.weight, change.scale, settings) if is_square(change) else []


LYCORIS_IA3 = Kind(
    name="lycoris-ia3",
    roles=frozenset({L}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    misreadings=(
        with_factor(becomes, "one-missing", f"it is multiplied with {L}, not 1 + {L}", L, lambda numbers: numbers - 1),
        Misreading("other-side", "inputs are taken for outputs, or the reverse", _other_side),
    ),
    spellings={"kohya": Spelling(tag="IA3", keys={f".{L}": L}, settings=frozenset({ON_INPUT}))},
)
