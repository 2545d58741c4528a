"""LoRA: W' = W + w·s·B·A, with s = alpha/r, or alpha/√r for rsLoRA.

Sources: E. Hu et al., "LoRA" (arXiv:2106.09685); D. Kalajdzievski, "Rank-stabilized LoRA" (arXiv:2312.03732).
Checked against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from adaptertool.kinds.kind import Kind, Shape

if TYPE_CHECKING:
    from torch import Tensor

A, B = "lora_A", "lora_B"


def scaling(alpha: float, rank: int, *, rank_stabilised: bool) -> float:
    """s, by the same float64 expression that PEFT uses."""
    return alpha / math.sqrt(rank) if rank_stabilised else alpha / rank


def expected(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (r, in) and B (out, r) for a weight (out, in); r is what lora_A has.

    For a convolution (out, in, k, ...): A (r, in, k, ...) and B (out, r, 1, ...). The delta is that of the
    flattened matrices. Grouped convolutions have other shapes and do not fit.
    """
    if len(weight) < 2 or not factors[A]:
        return None
    rank = factors[A][0]
    return {A: (rank, *weight[1:]), B: (weight[0], rank, *[1] * (len(weight) - 2))}


def apply(rows: Tensor, factors: Mapping[str, Tensor], scale: float, weight: float) -> None:
    """rows += weight·scale·B·A, in place. rows (n, columns) float64; A (r, columns); B (n, r)."""
    rows.addmm_(factors[B] * (weight * scale), factors[A])


LORA = Kind(
    "lora",
    needs=frozenset({A, B}),
    by_row=frozenset({B}),
    by_column=frozenset({A}),
    expected=expected,
    apply=apply,
)
