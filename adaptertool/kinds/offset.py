"""Offset: the bias of the second LoRA factor (`lora_bias`) is added to the layer's own. b' = b + w·s·c.

Source: `lora_bias` of PEFT 0.21.2, against which this is checked in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adaptertool.kinds.kind import Kind, Shape

if TYPE_CHECKING:
    from torch import Tensor

BIAS = "lora_B.bias"


def expected(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape]:  # noqa: ARG001
    """The shape of the bias itself."""
    return {BIAS: weight}


def apply(rows: Tensor, factors: Mapping[str, Tensor], scale: float, weight: float) -> None:
    """rows += weight·scale·c, in place, float64."""
    rows.add_(factors[BIAS] * scale, alpha=weight)


OFFSET = Kind(
    "offset", needs=frozenset({BIAS}), by_row=frozenset({BIAS}), expected=expected, apply=apply, elementwise=True
)
