"""DoRA: V = W + s·B·A; W' = (m / ‖V‖)·V, with the norm over each output row. With a weight: W + w·(W' − W).

Sources: S. Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (arXiv:2402.09353); the norm has no epsilon,
as in PEFT 0.21.2, against which this is checked in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adaptertool.kinds import lora
from adaptertool.kinds.kind import NORM, Kind, Shape
from adaptertool.kinds.lora import A, B

if TYPE_CHECKING:
    from torch import Tensor

MAGNITUDE = "lora_magnitude_vector"


def expected(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """Factors as for LoRA; m (out,), or (1, out, 1, ...) for a convolution."""
    shapes = lora.expected(weight, factors)
    if shapes is None:
        return None
    rest = len(weight) - 2
    return {**shapes, MAGNITUDE: (1, weight[0], *[1] * rest) if rest else (weight[0],)}


def squares(rows: Tensor, factors: Mapping[str, Tensor], scale: float) -> Tensor:
    """‖V‖² of each row, as far as the columns in `rows` go: (n, 1)."""
    return rows.addmm(factors[B] * scale, factors[A]).square_().sum(dim=1, keepdim=True)


def apply(rows: Tensor, factors: Mapping[str, Tensor], scale: float, weight: float) -> None:
    """rows += weight·((m / ‖V‖)·V − rows), in place. rows (n, columns) float64; A (r, columns); B (n, r);
    m and the norm (n, 1)."""
    changed = rows.addmm(factors[B] * scale, factors[A])
    changed *= factors[MAGNITUDE] / factors[NORM]
    if weight == 1:
        rows.copy_(changed)
    else:
        rows.add_(changed.sub_(rows), alpha=weight)


DORA = Kind(
    "dora",
    needs=frozenset({A, B, MAGNITUDE}),
    by_row=frozenset({B, MAGNITUDE}),
    by_column=frozenset({A}),
    expected=expected,
    apply=apply,
    squares=squares,
)
