"""HiRA: W' = W + w·W ⊙ (B·A); ⊙ multiplies element by element.

Source: Q. Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models" (ICLR
2025). Checked against PEFT 0.21.2 in the tests. Of several adapters each multiplies the weight that
it finds, as where PEFT merges one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.kinds import lora
from adaptertool.kinds.kind import Change, Factors, Kind, Misreading, Part, Shape
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array, Bound, Factor, in_range, may_overflow, tiny
from adaptertool.numerics.ops import TIMES, Ops

A, B = "hira_A", "hira_B"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """Those of LoRA, also for convolutions."""
    own = lora.shapes(weight, {lora.A: factors[A], lora.B: factors[B]})
    return None if own is None else {A: own[lora.A], B: own[lora.B]}


def apply(ops: Ops, rows: Array, factors: Factors, scale: Any, weight: Any) -> None:
    """rows += rows ⊙ (weight·scale·B·A), in place. rows (n, columns); A (r, columns); B (n, r)."""
    assert ops.times is not None
    b = factors[B] * (weight * scale)
    for part in ops.parts(rows):
        rows[part] += ops.times(rows[part], b[part] @ factors[A])


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:  # noqa: ARG001
    """A product p as in LoRA, that with the weight x, and the sum of both.

    With |p̂ − p| ≤ e, |p| ≤ P and |x| ≤ X:  |fl(x̂·p̂) − x·p| ≤ |x̂ − x|·(P + e) + X·e + unit·|x̂·p̂| + underflow.
    """
    a, b = factors[A], factors[B]
    times, rank = abs(weight * scale), len(a.array)
    largest = math.sqrt(a.longest_column) * times * math.sqrt(b.longest_row) * (1 + 2.0**-20)
    error = (rank + 5) * unit / (1 - (rank + 5) * unit) * largest + (rank + 1) * tiny(unit)
    found = size.largest + size.absolute
    if may_overflow(unit, times, a.largest, b.largest, b.largest * times, largest + error, found * (largest + error)):
        return Bound(math.inf, math.inf)
    if 0 in (weight, scale, a.largest, b.largest):
        return size
    scaled = [end * times for end in b.extent]
    if not in_range((a.extent, b.extent, (min(scaled), max(scaled))), unit):
        return Bound(math.inf, math.inf)
    grain = size.grain_with(b, scale, weight)
    grain = None if grain is None else size.grain_with(a, power=grain)
    if grain is not None and size.grain is not None:
        grain = min(grain + size.grain, size.grain)
    wrong = size.absolute * (largest + error) + size.largest * error + unit * found * (largest + error) + tiny(unit)
    return size.plus(size.largest * largest * (1 + 2.0**-20), wrong * (1 + 2.0**-20), unit, grain)


def _as_lora(change: Change) -> Sequence[Part]:
    return [Part(lora.LORA.name, {lora.A: change.factors[A], lora.B: change.factors[B]}, change.scale)]


HIRA = Kind(
    name="hira",
    roles=frozenset({A, B}),
    by_row=frozenset({B}),
    by_column=frozenset({A}),
    shapes=shapes,
    apply=apply,
    bound=bound,
    operations=frozenset({TIMES}),
    single=True,
    linear=True,
    of_weight=True,
    misreadings=(Misreading("taken-for-lora", "the product is added, not multiplied with the weight", _as_lora),),
    spellings={
        "peft": Spelling(
            tag="HIRA",
            keys={f".{role}": role for role in (A, B)},
            embedding={".hira_embedding_A": A, ".hira_embedding_B": B},
            rank=None,  # it plays no part, and PEFT 0.21.2 does not give layers those of rank_pattern
            alpha=None,
            scale=lambda _: 1.0,
            harmless=frozenset({"r", "hira_dropout", "init_weights"}),
        )
    },
)
