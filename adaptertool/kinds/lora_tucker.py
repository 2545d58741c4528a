"""LoCon in Tucker form, of a convolution: ΔW[o,i,k] = s·Σ B[o,m]·C[m,n,k]·A[n,i], with a core C (r, r, k, ...).

Source: LyCORIS 4.1.3 (`lora_mid`), against whose forward pass this is checked in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import product, products, terms_of, whole
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

CORE = "lora_mid"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (r, in, 1, ...), B (out, r, 1, ...) and C (r, r, k, ...) for a convolution (out, in, k, ...)."""
    if len(weight) < 3 or not factors[A]:
        return None
    rank, ones = factors[A][0], (1,) * (len(weight) - 2)
    return {A: (rank, weight[1], *ones), B: (weight[0], rank, *ones), CORE: (rank, rank, *weight[2:])}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """LoRA of rank r²: for each m and n column m of B, and C[m,n]·A[n]; so each of its numbers is one product."""
    a, b, core = factors[A], factors[B], factors[CORE]
    rank, terms = a.shape[0], terms_of(a, core)

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return [np.repeat(read(b, first, last), rank, axis=1)]

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:  # noqa: ARG001
        middle = whole(read, core).reshape(rank, rank, 1, -1)
        found = products(read(a, 0, rank).reshape(1, rank, -1, 1), middle, terms)
        return [term.reshape(rank * rank, -1) for term in found]

    shape = weight[0], rank * rank, math.prod(weight[1:])
    return [product((a, b, core), shape, (left, 1), (right, terms), scale)]


LORA_TUCKER = Kind(
    name="lora-tucker",
    roles=frozenset({A, B, CORE}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    spellings={
        "kohya": Spelling(
            tag="LORA_TUCKER",
            keys={".lora_down.weight": A, ".lora_up.weight": B, ".lora_mid.weight": CORE},
            rank_of=lambda shapes: shapes[A][0],
        )
    },
)
