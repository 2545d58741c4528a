"""UniLoRA: LoRA each of whose numbers is one of a vector that all modules share, times a scale. W' = W + w·B·A, with
A[k, i] = θ[n[k, i]]·c[k, i], and B alike; the places n and the scales c are fixed.

Source: PEFT 0.21.2 (tuners/unilora), against which this is checked in the tests. Where places and scales are not saved,
PEFT makes them anew by a generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import InputError, shown
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import product, products, terms_of, whole
from adaptertool.kinds.spelling import Spelling
from adaptertool.kinds.vera import not_saved
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

PLACES_A, PLACES_B = "unilora_indices_A", "unilora_indices_B"
SCALES_A, SCALES_B = "unilora_scales_A", "unilora_scales_B"
THETA = "unilora_theta_d"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """θ (n,); places and scales (r, in) of A and (out, r) of B, for a weight (out, in)."""
    if len(weight) != 2 or not factors[PLACES_A] or len(factors[THETA]) != 1:
        return None
    rank = factors[PLACES_A][0]
    a, b = (rank, weight[1]), (weight[0], rank)
    return {PLACES_A: a, SCALES_A: a, PLACES_B: b, SCALES_B: b, THETA: factors[THETA]}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """LoRA. Its rows raise InputError for places outside of θ."""
    theta, rank = factors[THETA], factors[PLACES_A].shape[0]

    def numbers(read: ReadRows, places: Ref, scales: Ref, first: int, last: int) -> Sequence[Array]:
        at = read(places, first, last)
        if not ((at >= 0) & (at < theta.shape[0]) & (at == np.floor(at))).all():
            raise InputError(f"{places.path}: {shown(places.spec.name)} names numbers that {THETA} has not")
        return products(whole(read, theta)[at.astype(np.int64)], read(scales, first, last), terms_of(theta, scales))

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return numbers(read, factors[PLACES_B], factors[SCALES_B], first, last)

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return numbers(read, factors[PLACES_A], factors[SCALES_A], first, last)

    of_b, of_a = (terms_of(theta, factors[role]) for role in (SCALES_B, SCALES_A))
    return [product(factors.values(), (weight[0], rank, weight[1]), (left, of_b), (right, of_a), scale, plain=False)]


UNILORA = Kind(
    name="unilora",
    roles=frozenset({PLACES_A, PLACES_B, SCALES_A, SCALES_B, THETA}),
    by_row=frozenset({PLACES_B, SCALES_B}),
    by_column=frozenset({PLACES_A, SCALES_A}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    spellings={
        "peft": Spelling(
            tag="UNILORA",
            keys={f".{role}": role for role in (PLACES_A, PLACES_B, SCALES_A, SCALES_B)},
            shared={f"base_model.{THETA}": THETA},
            integers=frozenset({PLACES_A, PLACES_B}),
            alpha=None,
            scaling=lambda _alpha, _rank: 1.0,
            check=lambda fields: not_saved("save_indices", fields),
            harmless=frozenset(
                {"proj_seed", "theta_d_length", "unilora_dropout", "init_theta_d_bound", "init_weights", "save_indices"}
            ),
        )
    },
)
