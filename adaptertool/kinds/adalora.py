"""AdaLoRA: W' = W + w·s·B·(A ⊙ E), with E (r, 1) the singular values, and s = alpha/(init_r + 10⁻⁵), also where
ranks were pruned since; an alpha that is not positive stands for init_r.

Source: Q. Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning" (arXiv:2303.10512).
Checked against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import on_points, product, products, terms_of
from adaptertool.kinds.misreadings import ONES, ignored
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

A, B, E = "lora_A", "lora_B", "lora_E"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (r, in), B (out, r) and E (r, 1) for a weight (out, in), or for that of a convolution in two dimensions as a
    matrix."""
    if len(weight) not in (2, 4) or not factors[A]:
        return None
    rank = factors[A][0]
    return {A: (rank, math.prod(weight[1:])), B: (weight[0], rank), E: (rank, 1)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """LoRA with A ⊙ E in the place of A."""
    a, b, e = factors[A], factors[B], factors[E]
    terms = terms_of(a, e)

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return [read(b, first, last)]

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return products(read(a, first, last), read(e, first, last), terms)

    part = product((a, b, e), (weight[0], a.shape[0], math.prod(weight[1:])), (left, 1), (right, terms), scale)
    return [on_points(part, weight)]


def _scale(fields: Mapping[str, Any]) -> float:
    alpha, rank = fields["lora_alpha"], fields["init_r"]
    scale: float = (alpha if alpha > 0 else float(rank)) / (rank + 1e-5)
    return scale


ADALORA = Kind(
    name="adalora",
    roles=frozenset({A, B, E}),
    by_row=frozenset({B}),
    by_column=frozenset({A}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    misreadings=ignored(becomes, ONES, E),
    spellings={
        "peft": Spelling(
            tag="ADALORA",
            keys={f".{role}": role for role in (A, B, E)},
            rank=None,
            alpha="lora_alpha",
            scale=_scale,
            harmless=frozenset(
                {"r", "target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight"}
                | {"total_step", "rank_pattern", "use_rslora"}  # PEFT has the same scale with it
            ),
            refused=dict.fromkeys(
                (
                    *("use_dora", "velora_config", "monteclora_config", "lora_bias", "target_parameters"),
                    *("use_bdlora", "ensure_weight_tying", "kasa_config"),
                ),
                "it is of LoRA, and PEFT's AdaLoRA has no such thing: what it was trained with is not known",
            ),
        )
    },
)
