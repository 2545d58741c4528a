"""Full: the adapter holds the tuned tensor T itself. W' = W + w·(T − W); w = 1 replaces.

`modules_to_save`, saved biases and every tensor of a fine-tuned checkpoint are of this kind. Interpolating it
is Wise-FT: M. Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv:2109.01903).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptertool.kinds.kind import Factors, Kind, Shape
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array, Bound, Factor, mixed
from adaptertool.numerics.ops import Ops

TUNED = "tuned"
TOKENS = "TRAINABLE_TOKENS"  # of PEFT: rows of embeddings


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape]:  # noqa: ARG001
    """The shape of the weight itself."""
    return {TUNED: weight}


def apply(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:  # noqa: ARG001
    """rows += weight·(T − rows), in place; exactly T where the weight is 1. rows and T have one shape. `scale` plays no
    part."""
    tuned = factors[TUNED]
    if weight == 1:
        rows[...] = tuned
    else:
        rows += (tuned - rows) * weight


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:  # noqa: ARG001
    """The bound of T itself, or of the mixture with it."""
    largest = factors[TUNED].largest
    if not math.isfinite(largest):  # for the caller to find where
        return Bound(math.inf, math.inf)
    tuned = Bound(largest, grain=size.grain_with(factors[TUNED]), moved=size.moved + size.largest + largest)
    return tuned if weight == 1 else mixed(size, tuned, weight, unit)


FULL = Kind(
    name="full",
    roles=frozenset({TUNED}),
    by_row=frozenset({TUNED}),
    shapes=shapes,
    apply=apply,
    bound=bound,
    elementwise=True,
    replaces=True,
    anew=(TUNED,),
    spellings={"comfy": Spelling(tag="SET", keys={".set_weight": TUNED})},
)

# Adapters in which there is nothing else, by format
ALONE = {
    "peft": (
        Spelling(tag="LN_TUNING", keys={}, rank=None, alpha=None, wraps="ln_tuning_layers"),
        Spelling(
            tag=TOKENS, keys={}, rank=None, alpha=None, tokens="token_indices", harmless=frozenset({"init_weights"})
        ),
    )
}
