"""LoRA: W' = W + w·s·B·A, with s = alpha/r, or alpha/√r for rsLoRA.

Sources: E. Hu et al., "LoRA" (arXiv:2106.09685); D. Kalajdzievski, "Rank-stabilized LoRA" (arXiv:2312.03732).
Checked against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptertool.kinds.kind import PRODUCT, Factors, Kind, Shape
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array, Bound, Factor, in_range, may_overflow, tiny
from adaptertool.numerics.ops import Ops

A, B = "lora_A", "lora_B"


def scaling(alpha: float, rank: int, *, rank_stabilised: bool) -> float:
    """s, by the same float64 expression that PEFT uses."""
    return alpha / math.sqrt(rank) if rank_stabilised else alpha / rank


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (r, in) and B (out, r) for a weight (out, in); r is what lora_A has.

    For a convolution (out, in, k, ...): A (r, in, k, ...) and B (out, r, 1, ...). The delta is that of the
    flattened matrices. Grouped convolutions have other shapes and do not fit. Dimensions of 1 at the end make no
    difference: layers are linear for one tool, and convolutions of size 1 for another.
    """
    if len(weight) < 2 or not factors[A]:
        return None
    rank = factors[A][0]
    fitting = {A: (rank, *weight[1:]), B: (weight[0], rank, *[1] * (len(weight) - 2))}
    return {role: factors[role] if _alike(factors[role], shape) else shape for role, shape in fitting.items()}


def _alike(one: Shape, other: Shape) -> bool:
    """Whether both are of matrices or more, and differ by dimensions of 1 at the end alone."""
    shared = min(len(one), len(other))
    return shared >= 2 and one[:shared] == other[:shared] and set(one[shared:] + other[shared:]) <= {1}


def apply(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:
    """rows += weight·scale·B·A, in place. rows (n, columns); A (r, columns); B (n, r); or their product."""
    if PRODUCT in factors:
        for part in ops.parts(rows):
            rows[part] += factors[PRODUCT][part] * (weight * scale)
        return
    ops.add_product(rows, factors[B] * (weight * scale), factors[A])


def combined(ops: Ops, rows: Array, factors: Factors, scale: Any) -> Array:
    """rows + scale·B·A, in an array of its own."""
    if PRODUCT in factors:
        return rows + factors[PRODUCT] * scale
    return ops.plus_product(rows, factors[B] * scale, factors[A])


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:  # noqa: ARG001
    """The r products and sums, and three roundings of factors and scale; then the sum with the weight. No element of
    |B|·|A| is larger than the longest row of B times the longest column of A (Cauchy and Schwarz).

    Infinite where numbers are so large or small that they may overflow, or lose bits, on the way.
    Source: N. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1.
    """
    if PRODUCT in factors:
        return _bound_of_product(size, factors[PRODUCT], abs(weight * scale), unit)
    a, b = factors[A], factors[B]
    times, rank = abs(weight * scale), len(a.array)
    if 0 in (weight, scale, a.largest, b.largest):
        return Bound(math.inf, math.inf) if may_overflow(unit, times, a.largest, b.largest, b.largest * times) else size
    scaled = [end * times for end in b.extent]
    if not in_range((a.extent, b.extent, (min(scaled), max(scaled))), unit):
        return Bound(math.inf, math.inf)
    change = math.sqrt(a.longest_column) * times * b.longest_row**0.5 * (1 + 2.0**-20)
    relative = (rank + 5) * unit / (1 - (rank + 5) * unit)
    grain = size.grain_with(a, scale, weight)
    if grain is not None:
        grain = size.grain_with(b, power=grain)
    return size.plus(change, relative * change + (rank + 1) * tiny(unit), unit, grain)


def _bound_of_product(size: Bound, product: Factor, times: float, unit: float) -> Bound:
    """The same where the product is there, which is off by some error: it may be rounded, and the scale, and the two
    are multiplied."""
    assert product.size is not None
    change = (product.largest + product.size.error) * times * (1 + 2.0**-20)
    if may_overflow(unit, times, product.largest, product.size.error, change):
        return Bound(math.inf, math.inf)
    error = product.size.error * times * (1 + 2.0**-20) + 4 * unit * change + 2 * (1 + times) * tiny(unit)
    return size.plus(change, error, unit, None)


LORA = Kind(
    name="lora",
    roles=frozenset({A, B}),
    by_row=frozenset({B}),
    by_column=frozenset({A}),
    shapes=shapes,
    apply=apply,
    bound=bound,
    bound_by_row=bound,
    single=True,
    pair=(B, A),
    is_product=True,
    linear=True,
    spellings={
        "kohya": Spelling(
            tag="LORA",
            keys={".lora_down.weight": A, ".lora_up.weight": B},
            rank_of=lambda shapes: shapes[A][0],
        ),
        "mlx": Spelling(tag="lora", keys={".lora_a": A, ".lora_b": B}, alpha=None),
    },
)
