"""Full: the adapter holds the tuned tensor T itself. W' = W + w·(T − W); w = 1 replaces.

`modules_to_save`, saved biases and every tensor of a fine-tuned checkpoint are of this kind. Interpolating it
is Wise-FT: M. Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adaptertool.kinds.kind import Kind, Shape

if TYPE_CHECKING:
    from torch import Tensor

TUNED = "tuned"


def expected(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape]:  # noqa: ARG001
    """The shape of the weight itself."""
    return {TUNED: weight}


def apply(rows: Tensor, factors: Mapping[str, Tensor], scale: float, weight: float) -> None:  # noqa: ARG001
    """rows += weight·(T − rows), in place, float64; exactly T where the weight is 1. `scale` plays no part."""
    tuned = factors[TUNED]
    if weight == 1:
        rows.copy_(tuned)
    else:
        rows.add_(tuned - rows, alpha=weight)


FULL = Kind(
    "full",
    needs=frozenset({TUNED}),
    by_row=frozenset({TUNED}),
    expected=expected,
    apply=apply,
    elementwise=True,
)
