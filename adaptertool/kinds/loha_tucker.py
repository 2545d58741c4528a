"""LoHa of a convolution in Tucker form: W' = W + w·s·R₁ ⊙ R₂, with R[p, q, t] = Σ T[i, j, t]·B[i, p]·A[j, q] for
output p, input q and place t of the kernel.

Source: N. Hyeon-Woo et al., "FedPara" (arXiv:2108.06098), proposition 3; use_effective_conv2d of PEFT 0.21.2, against
which it is checked in the tests. It comes down to LoHa of rank r².
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.loha import A1, A2, B1, B2, T1, T2
from adaptertool.kinds.made import hadamard, tucker
from adaptertool.kinds.spelling import Spelling
from adaptertool.spec.tensors import Ref


def kernel(weight: Shape, core: Shape) -> Shape:
    """The last dimensions of a core: of a convolution in one dimension (k, 1) for PEFT, and (k,) for LyCORIS."""
    return (*weight[2:], 1) if len(weight) == 3 and core[2:] != weight[2:] else weight[2:]


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """T (r, r, k, ...), B (r, out) and A (r, in) for a convolution (out, in, k, ...)."""
    if len(weight) not in (3, 4, 5) or not factors[A1] or not factors[A2]:
        return None
    sets = ((T1, B1, A1), (T2, B2, A2))
    return {
        role: shape
        for t, b, a in sets
        for rank in [factors[a][0]]
        for role, shape in (
            (t, (rank, rank, *kernel(weight, factors[t]))),
            (b, (rank, weight[0])),
            (a, (rank, weight[1])),
        )
    }


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """LoHa, whose two products are in Tucker form."""
    rows = np.arange(weight[0])
    columns = np.divmod(np.arange(math.prod(weight[1:])), math.prod(weight[2:]))
    first, second = (
        tucker(factors[t], factors[b], factors[a], rows, columns) for t, b, a in ((T1, B1, A1), (T2, B2, A2))
    )
    return [hadamard(factors.values(), weight, first, second, scale)]


LOHA_TUCKER = Kind(
    name="loha_tucker",
    roles=frozenset({T1, B1, A1, T2, B2, A2}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    spellings={
        "kohya": Spelling(
            tag="LOHA_TUCKER",
            keys={f".{role}": role for role in (T1, B1, A1, T2, B2, A2)},
            rank_of=lambda shapes: shapes[A1][0],
        )
    },
)
