"""Difference: a tensor D of the weight's own shape is added. W' = W + w·s·D.

What others come down to whose change is no product: sparse ones, circulant ones, Kronecker products.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptertool.kinds import offset
from adaptertool.kinds.kind import Factors, Kind, Shape
from adaptertool.kinds.offset import BIAS
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array, Bound, Factor
from adaptertool.numerics.ops import Ops

DELTA = "delta"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape]:  # noqa: ARG001
    """The shape of the weight itself."""
    return {DELTA: weight}


def apply(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:
    """rows += weight·scale·D, in place, as the offset of a bias. rows and D have one shape."""
    offset.apply(ops, rows, {BIAS: factors[DELTA]}, scale, weight)


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:
    """The bound after two products and a sum, and the rounding of D."""
    return offset.bound(size, {BIAS: factors[DELTA]}, scale, weight, unit, length)


DIFFERENCE = Kind(
    name="difference",
    roles=frozenset({DELTA}),
    by_row=frozenset({DELTA}),
    shapes=shapes,
    apply=apply,
    bound=bound,
    elementwise=True,
    adds=DELTA,
    linear=True,
    spellings={"kohya": Spelling(tag="FULL", keys={".diff": DELTA, ".w_norm": DELTA})},
)
