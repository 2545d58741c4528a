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


def interpolated(magnitude: Tensor, norm: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """(f, e) of the DoRA adapter that makes W + α·(W' − W): B' = diag(f)·B, and m' = e·‖W + s·B'·A‖, with the same A
    and s.

    With d = m/‖V‖:  e = 1 − α + α·d  and  f = α·d/e. For W + α·(d·V − W) = e·W + α·d·s·B·A = e·(W + s·B'·A): its
    direction is that of W + s·B'·A, and m' is its length. Source: this derivation; checked against PEFT in the tests.

    magnitude, norm: m and ‖V‖, one for each output row, of one shape; f and e have the same. float64.
    Raises nothing, but no length is e ≤ 0, and f is infinite or NaN where ‖V‖ or e is 0: for the caller to refuse.
    """
    ratio = magnitude / norm
    length = (1 - alpha) + alpha * ratio  # in this order it is exact at both ends
    return alpha * ratio / length, length


def widened(dtype: str) -> str:
    """What B' and m' are stored as: 16 bits would move the weight by more than it is rounded by."""
    return dtype if dtype == "F64" else "F32"


DORA = Kind(
    "dora",
    needs=frozenset({A, B, MAGNITUDE}),
    by_row=frozenset({B, MAGNITUDE}),
    by_column=frozenset({A}),
    expected=expected,
    apply=apply,
    squares=squares,
)
