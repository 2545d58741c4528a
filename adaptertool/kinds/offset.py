"""Offset: the bias of the second LoRA factor (`lora_bias`) is added to the layer's own. b' = b + w·s·c.

Source: `lora_bias` of PEFT 0.21.2, against which this is checked in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptertool.kinds.kind import Factors, Kind, Shape
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array, Bound, Factor, in_range, may_overflow
from adaptertool.numerics.ops import Ops

BIAS = "lora_B.bias"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape]:  # noqa: ARG001
    """The shape of the bias itself."""
    return {BIAS: weight}


def apply(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:  # noqa: ARG001
    """rows += weight·scale·c, in place. rows and c have one shape."""
    rows += factors[BIAS] * (weight * scale)


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:  # noqa: ARG001
    """The bound after two products and a sum."""
    times, extent = abs(weight * scale), factors[BIAS].extent
    change = times * factors[BIAS].largest * (1 + 2.0**-20)
    if 0 in (weight, scale, factors[BIAS].largest):
        return Bound(math.inf, math.inf) if may_overflow(unit, times, factors[BIAS].largest) else size
    if not in_range((extent, (extent[0] * times, change)), unit):
        return Bound(math.inf, math.inf)
    return size.plus(change, 3 * unit * change, unit, size.grain_with(factors[BIAS], scale, weight))


OFFSET = Kind(
    name="offset",
    roles=frozenset({BIAS}),
    by_row=frozenset({BIAS}),
    shapes=shapes,
    apply=apply,
    bound=bound,
    elementwise=True,
    adds=BIAS,
    follows=True,
    linear=True,
    spellings={"diffusers": Spelling(tag="LORA_BIAS", keys={".lora_B.bias": BIAS})},
)
