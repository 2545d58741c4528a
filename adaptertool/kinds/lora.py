"""LoRA: W' = W + w·s·B·A, with s = alpha/r, or alpha/√r for rsLoRA.

Sources: E. Hu et al., "LoRA" (arXiv:2106.09685); D. Kalajdzievski, "Rank-stabilized LoRA" (arXiv:2312.03732).
Checked against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptertool.kinds.kind import Array, Kind, Shape, Size, extent, in_range, tiny

A, B = "lora_A", "lora_B"

_PART = 1 << 16  # elements of a product


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


def apply(rows: Array, factors: Mapping[str, Array], scale: Any, weight: Any) -> None:
    """rows += weight·scale·B·A, in place. rows (n, columns); A (r, columns); B (n, r)."""
    add_product(rows, factors[B] * (weight * scale), factors[A])


def add_product(rows: Array, left: Array, right: Array) -> None:
    """rows += left @ right, in place. The product apart from the sum, since BLAS may add into what is there after
    every one of the r terms; in parts that stay in the cache."""
    if rows.ndim > 2:  # single elements
        rows += left @ right
        return
    step = max(1, _PART // max(right.shape[1], 1))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        part += left[first : first + step] @ right


def reach(factors: Mapping[str, Array], scale: float) -> float:
    """No element of |scale|·|B|·|A| is larger (Cauchy and Schwarz): |scale| times the longest row of B times the
    longest column of A."""
    a, b = factors[A], factors[B]
    if not a.size or not b.size:
        return 0.0
    product = float((a * a).sum(0).max()) * float((b * b).sum(1).max())
    return abs(scale) * math.sqrt(product) * (1 + 1e-4)  # more than what rounding takes away


def bound(size: Size, factors: Mapping[str, Array], scale: float, weight: float, unit: float, length: int) -> Size:  # noqa: ARG001
    """The r products and sums, and three roundings of factors and scale; then the sum with the weight.

    Infinite where numbers are so large or small that they may overflow, or lose bits, on the way.
    Source: N. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1.
    """
    extents = [extent(factors[A]), extent(factors[B])]
    if weight == 0 or scale == 0 or any(largest == 0 for _, largest in extents):
        return size
    times, rank = abs(weight * scale), len(factors[A])
    scaled = tuple(end * times for end in extents[1])
    if not in_range((*extents, (min(scaled), max(scaled))), unit):
        return Size(math.inf, math.inf)
    change = reach(factors, weight * scale)
    relative = (rank + 5) * unit / (1 - (rank + 5) * unit)
    grain = size.grain_with(factors[A], scale, weight)
    if grain is not None:
        grain = size.grain_with(factors[B], power=grain)
    return size.plus(change, relative * change + (rank + 1) * tiny(unit), unit, grain)


LORA = Kind(
    "lora",
    needs=frozenset({A, B}),
    by_row=frozenset({B}),
    by_column=frozenset({A}),
    expected=expected,
    apply=apply,
    bound=bound,
)
