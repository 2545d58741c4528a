"""GLoRA as LyCORIS writes it: W' = W + w·s·(W·A₁·A₂ + B₁·B₂), with s = alpha/r; of a convolution, W·A₁·A₂ at each of
its points.

The file does not tell whether it was trained with s = alpha/√r (rs_lora), but for the settings that trainers put into
its metadata: then it is refused. Source: LyCORIS 4.1.3, against whose forward pass this is checked in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.lora import LORA, A, B
from adaptertool.kinds.made import made, whole
from adaptertool.kinds.misreadings import ZEROS, ignored
from adaptertool.kinds.right_product import HIGH, LEFT, LOW, RIGHT_PRODUCT
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.numerics.error_free import two_product
from adaptertool.spec.tensors import ReadRows, Ref

A1, A2, B1, B2 = "a1", "a2", "b1", "b2"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A₁ (in, r), A₂ (r, in), B₁ (out, r) and B₂ (r, in) for a weight (out, in); of a convolution (out, in, k, ...)
    with ones for k, but for B₂."""
    if len(weight) < 2 or not factors[A2] or not factors[A2][0]:
        return None
    rank, ones = factors[A2][0], (1,) * (len(weight) - 2)
    out, columns, *kernel = weight
    expected = {A1: (columns, rank, *ones), A2: (rank, columns, *ones), B1: (out, rank, *ones)}
    return expected | {B2: (rank, columns, *kernel)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """A right product, with s·A₂ in two parts, and then LoRA, which does not depend on the weight."""
    a1, a2 = factors[A1], factors[A2]
    points = math.prod(weight[2:])
    columns, inner = weight[1] * points, a2.shape[0] * points

    def left(read: ReadRows, first: int, last: int) -> Array:
        return _at_points(whole(read, a1), points)[first:last]

    def right(half: int) -> Ref:
        def rows(read: ReadRows, first: int, last: int) -> Array:
            numbers = whole(read, a2)
            return _at_points(two_product(numbers, np.full_like(numbers, scale))[half], points)[first:last]

        return made((a2,), (inner, columns), rows)

    product = {LEFT: made((a1,), (columns, inner), left), HIGH: right(0), LOW: right(1)}
    return [Part(RIGHT_PRODUCT.name, product, 1.0), Part(LORA.name, {B: factors[B1], A: factors[B2]}, scale)]


def _at_points(matrix: Array, points: int) -> Array:
    """The Kronecker product with the identity: the same matrix at each point of a kernel."""
    return np.kron(matrix.reshape(matrix.shape[:2]), np.eye(points))


LYCORIS_GLORA = Kind(
    name="lycoris-glora",
    roles=frozenset({A1, A2, B1, B2}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    misreadings=ignored(becomes, ZEROS, A1, B1),
    spellings={
        "kohya": Spelling(
            tag="GLORA",
            keys={f".{role}.weight": role for role in (A1, A2, B1, B2)},
            rank_of=lambda shapes: shapes[A2][0] if shapes[A2] else None,
            refused={"rs_lora": "alpha is divided by the root of the rank then, which its tensors do not tell"},
        )
    },
)
