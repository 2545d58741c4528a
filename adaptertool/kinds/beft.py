"""BEFT: a vector is added to the bias of a layer, b' = b + w·c, and its weight stays.

Source: B. Huang et al., "BEFT: Bias-Efficient Fine-Tuning of Language Models" (arXiv:2509.15974). Checked against PEFT
0.21.2 in the tests, which has it on linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.kinds.difference import DELTA, DIFFERENCE
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import made, whole
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

BIAS = "beft_bias"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:  # noqa: ARG001
    """c (1, out) for a bias (out,)."""
    return {BIAS: (1, weight[0])} if len(weight) == 1 else None


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """c as the vector that it is."""

    def rows(read: ReadRows, first: int, last: int) -> Array:
        return whole(read, factors[BIAS]).reshape(-1, 1)[first:last]

    return [Part(DIFFERENCE.name, {DELTA: made(factors.values(), weight, rows)}, scale)]


BEFT = Kind(
    name="beft",
    roles=frozenset({BIAS}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    spellings={
        "peft": Spelling(
            tag="BEFT",
            keys={f".{BIAS}": BIAS},
            rank=None,
            alpha=None,
            bias="beft",
            only_bias=True,
            harmless=frozenset({"init_weights"}),
        )
    },
)
