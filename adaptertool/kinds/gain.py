"""Gain: each element of the weight times one of G. W' = W + w·(W ⊙ G − W).

What others come down to that scale rows or columns of a weight; G has the weight's own shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptertool.kinds.kind import Factors, Kind, Shape
from adaptertool.numerics.error_bound import Array, Bound, Factor, in_range, may_overflow, mixed, tiny
from adaptertool.numerics.ops import TIMES, Ops

G = "gain"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape]:  # noqa: ARG001
    """The shape of the weight itself."""
    return {G: weight}


def apply(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:  # noqa: ARG001
    """rows += weight·(rows ⊙ G − rows), in place. rows and G have one shape. `scale` plays no part."""
    assert ops.times is not None
    changed = ops.times(rows, factors[G])
    if weight == 1:
        rows[...] = changed
    else:
        rows += (changed - rows) * weight


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:  # noqa: ARG001
    """One product, of which G may have been rounded; and the mixture.

    |fl(x̂·ĝ) − x·g| ≤ unit·|result| + |x̂ − x|·|ĝ| + |x|·|ĝ − g|, with |ĝ − g| ≤ unit·|ĝ|: relative errors add up.
    """
    gain = factors[G]
    if may_overflow(unit, gain.largest, size.largest * gain.largest) or not in_range((gain.extent,), unit):
        return Bound(math.inf, math.inf)
    if weight == 0:
        return size
    largest = size.largest * gain.largest * (1 + 2.0**-20)
    changed = size.then(
        largest=largest,
        error=(size.error * gain.largest + tiny(unit)) * (1 + 2.0**-10),
        grain=None if size.grain is None else size.grain_with(gain, power=size.grain),
        relative=(size.relative + 2 * unit) * (1 + 2.0**-10),
        moved=size.moved + size.largest + largest,
    )
    return changed if weight == 1 else mixed(size, changed, weight, unit)


GAIN = Kind(
    name="gain",
    roles=frozenset({G}),
    by_row=frozenset({G}),
    shapes=shapes,
    apply=apply,
    bound=bound,
    operations=frozenset({TIMES}),
    elementwise=True,
    gains=G,
    single=True,
    of_weight=True,
)
