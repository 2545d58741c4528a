"""BOFT: W' = W + w·(s ⊙ (W·Mᵀ) − W), with M = B[N−1]·…·B[0] butterflies: B[i] takes its columns in an order of its own,
and has blocks (I − Q)·(I + Q)⁻¹ along its diagonal, of Q = (A − Aᵀ)/2; s has a number for each output row.

In stage i of several the columns of a group of b·2^i are 2^(i+1) parts of b/2: part j stands at place 2j, and part
2^i + j at place 2j + 1. The blocks that are made are within about b·2^-104 of the formula (numerics.cayley).

PEFT makes more than one stage only where it can compile for CUDA. Source: W. Liu et al., "Parameter-Efficient
Orthogonal Finetuning via Butterfly Factorization" (arXiv:2311.06243). Checked against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.blocks import rotation, stored_blocks
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import made, whole
from adaptertool.kinds.misreadings import ONES, ignored
from adaptertool.kinds.rotation import ROWS
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.cayley import transform
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

R, S = "boft_R", "boft_s"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (N, in/b, b, b) and s (out, 1) for a weight (out, in); s (1, out) for a convolution (out, in, k, k), as its
    matrix."""
    given = factors[R]
    square = len(weight) == 4 and weight[2] == weight[3]
    if (len(weight) != 2 and not square) or len(given) != 4 or not given[0] or not given[3]:
        return None
    (stages, _, wide, _), columns = given, math.prod(weight[1:])
    if columns % (wide << (stages - 1)) or (stages > 1 and wide % 2):
        return None
    return {R: (stages, columns // wide, wide, wide), S: (1, weight[0]) if square else (weight[0], 1)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """A rotation with a number for each row."""
    stored, numbers = factors[R], factors[S]
    stages, count, wide, _ = stored.shape
    columns = count * wide

    def blocks(read: ReadRows, first: int, last: int) -> DoubleDouble:
        some = DoubleDouble.of(stored_blocks(read, stored, first, last) / 2)
        return transform(some - DoubleDouble(some.parts.swapaxes(2, 3)))

    order = butterfly(stages, columns, wide)
    part = rotation((stored,), (stages, columns, wide), blocks, order, turned=False, finite=True)
    rows = made([numbers], (weight[0], 1), lambda read, first, last: whole(read, numbers).reshape(-1, 1)[first:last])
    return [part._replace(factors={**part.factors, ROWS: rows})]


def butterfly(stages: int, columns: int, wide: int) -> Array:
    """(N, columns): which column stands at each place while stage i multiplies."""
    if stages == 1:
        return np.arange(columns)[None]
    halves = [np.arange(columns).reshape(-1, 2, 1 << i, wide // 2) for i in range(stages)]
    return np.stack([half.swapaxes(1, 2).reshape(-1) for half in halves])


BOFT = Kind(
    name="boft",
    roles=frozenset({R, S}),
    by_row=frozenset({S}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    misreadings=ignored(becomes, ONES, S),
    spellings={
        "peft": Spelling(
            tag="BOFT",
            keys={f".{role}": role for role in (R, S)},
            rank=None,
            alpha=None,
            harmless=frozenset(
                {"boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "boft_dropout", "init_weights"}
            ),
        )
    },
)
