"""Right product: W' = W + w·(W·L)·M, where L (in, r) and M (r, in) are narrow: W times a matrix near the identity.

M may be of two parts, high and low, where no float64 holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adaptertool.kinds.kind import Factors, Kind, Neighbours, Shape
from adaptertool.numerics.error_bound import Array, Bound, Factor, may_overflow, tiny
from adaptertool.numerics.ops import BLOCKWISE, Ops

LEFT, HIGH, LOW = "left", "high", "low"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """L (in, r), both parts of M (r, in), for a weight (out, in), or that of a convolution as its matrix."""
    if len(weight) < 2 or len(factors[LEFT]) != 2:
        return None
    columns, rank = math.prod(weight[1:]), factors[LEFT][1]
    return {LEFT: (columns, rank), HIGH: (rank, columns), LOW: (rank, columns)}


def apply(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:  # noqa: ARG001
    """rows += weight·(rows·L)·M, in place. rows (n, columns); the factors as in `shapes`, floats in every number
    system. Floats take the high part of M alone. `scale` plays no part."""
    left, high, low = (ops.array(factors[role]) for role in (LEFT, HIGH, LOW))
    two = ops.exact and factors[LOW].any()
    if (columns := ops.columns(rows)) is not None:
        stored, inner = rows.T, ((rows @ left) * weight).T
        for part in columns:
            stored[part] += high.T[part] @ inner
        return
    for part in ops.parts(rows):
        inner = (rows[part] @ left) * weight
        rows[part] += inner @ high + inner @ low if two else inner @ high


def count(factors: Mapping[str, Shape]) -> int:
    """All columns."""
    return factors[LEFT][0]


def pick(
    ops: Ops, elements: Array, line: Callable[[Array], Array], factors: Factors, columns: Array, weight: Any
) -> None:
    """What `apply` makes of single elements, by whole rows."""
    total, rank = factors[LEFT].shape
    whole = line(np.broadcast_to(np.arange(total), (len(columns), total)))
    inner = (whole.reshape(len(columns), total) @ ops.array(factors[LEFT])).reshape(len(columns), 1, rank) * weight
    for role in (HIGH, LOW):
        if factors[role].any():
            elements += inner @ ops.array(factors[role].T[columns][:, :, None])


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:  # noqa: ARG001
    """Two sums of products, in any order, of factors that may have been rounded; and the sum with the weight.

    Let no |x| exceed X, |x̂ − x| ≤ e, and l, h and m be the largest sums of magnitudes of a column of L, of the high
    part of M, and of the low part. With γ(n) = n·unit/(1 − n·unit):

        |t| ≤ X·l,  |t̂ − t| ≤ e·l + γ(in + 1)·(X + e)·l + underflow = f;
        |y| ≤ X·l·(h + m),  |ŷ − y| ≤ f·h + X·l·m + γ(r + 3)·(X·l + f)·h + underflow,

    three of whose roundings are those of the weight, of the product with it, and of M.
    Source: N. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1.
    """
    (columns, rank), slack = factors[LEFT].array.shape, 1 + 2.0**-20
    left, high, low = (float(abs(factors[role].array).sum(0).max(initial=0.0)) for role in (LEFT, HIGH, LOW))
    times, x, e = abs(weight), size.largest, size.absolute
    inner, both = x * left * slack, (x + e) * left
    off = (e * left + _gamma(columns + 1, unit) * both + (columns + 1) * (1 + x + e) * tiny(unit)) * slack
    largest = inner * (high + low) * times * slack
    error = (off * high + inner * low + _gamma(rank + 3, unit) * (inner + off) * high) * times
    error = (error + (rank + 2) * (1 + (inner + off) * times + high) * tiny(unit)) * slack
    if may_overflow(unit, times, left, high, low, x + e, inner + off, largest + error, (inner + off) * times):
        return Bound(math.inf, math.inf)
    if 0 in (times, x + e, left, high + low):
        return size
    return size.plus(largest, error, unit, None)


def _gamma(count: int, unit: float) -> float:
    return count * unit / (1 - count * unit)


RIGHT_PRODUCT = Kind(
    name="right-product",
    roles=frozenset({LEFT, HIGH, LOW}),
    shapes=shapes,
    apply=apply,
    bound=bound,
    operations=frozenset({BLOCKWISE}),  # none of the systems of integers: they would hold rows of them
    neighbours=Neighbours(count=count, pick=pick),
    of_weight=True,
)
