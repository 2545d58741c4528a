"""RandLoRA: a sum of products of random matrices that all modules share, each scaled.

A (r, 1, m or more) and B (M or more, n or more, r) are shared; λ (r, n) and γ (n, m) are the module's, with m the
smaller and M the larger of out and in. q is i·n + j of λ and of A', but j·r + i of B, as the library flattens them:
A'[q] = λ[i, j]·A[i, 0, :m] ⊙ γ[j]; B'[:, q] = B[:M, j, i]; W' = W + w·s·B'·A', or its transpose where out is smaller,
with s = alpha/r.

Source: P. Albert et al., "RandLoRA: Full-rank parameter-efficient fine-tuning of large models" (arXiv:2502.00987).
Checked against PEFT 0.21.2 in the tests. Where A and B are not saved, PEFT makes them anew by a generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import product, products, terms_of, whole
from adaptertool.kinds.misreadings import ONES, ignored
from adaptertool.kinds.spelling import Spelling
from adaptertool.kinds.vera import why_not_saved
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

A, B, LAMBDA, GAMMA = "randlora_A", "randlora_B", "randlora_lambda", "randlora_gamma"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """Those above; n is m/r, rounded up. They do not tell a weight (out, in) from its transpose."""
    a, b = factors[A], factors[B]
    if len(weight) != 2 or len(a) != 3 or len(b) != 3 or not a[0]:
        return None
    rank, small, large = a[0], min(weight), max(weight)
    bases = -(-small // rank)
    return {
        A: (rank, 1, max(a[2], small)),
        B: (max(b[0], large), max(b[1], bases), rank),
        LAMBDA: (rank, bases),
        GAMMA: (bases, small),
    }


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """LoRA with λ on the side of B, and γ on that of A: the product of three numbers would need more than float64."""
    a, b, left, right = (factors[role] for role in (A, B, LAMBDA, GAMMA))
    (rank, bases), (out, wide) = left.shape, weight
    small, inner = right.shape[1], rank * bases
    of_b, of_a = terms_of(b, left), terms_of(a, right)

    def large_side(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        """(rows of the larger dimension, q)"""
        own = read(b, first, last).reshape(last - first, b.shape[1], rank)[:, :bases].reshape(last - first, inner)
        return products(own, whole(read, left).reshape(inner), of_b)

    def small_side(read: ReadRows) -> Sequence[Array]:
        """(q, the smaller dimension)"""
        own = whole(read, a)[:, :, :small]
        terms = products(np.repeat(own, bases, axis=1), whole(read, right)[None], of_a)
        return [term.reshape(inner, small) for term in terms]

    def rows_of_small(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return [term[first:last] for term in small_side(read)]

    def turned_small(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return [term[:, first:last].T for term in small_side(read)]

    def turned_large(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return [term.T[first:last] for term in large_side(read, 0, wide)]

    sources, shape = (a, b, left, right), (out, inner, wide)
    if small == wide:
        return [product(sources, shape, (large_side, of_b), (rows_of_small, of_a), scale)]
    return [product(sources, shape, (turned_small, of_a), (turned_large, of_b), scale)]


RANDLORA = Kind(
    name="randlora",
    roles=frozenset({A, B, LAMBDA, GAMMA}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    misreadings=ignored(becomes, ONES, LAMBDA, GAMMA),
    spellings={
        "peft": Spelling(
            tag="RANDLORA",
            keys={f".{role}": role for role in (LAMBDA, GAMMA)},
            shared={f"base_model.{role}": role for role in (A, B)},
            alpha="randlora_alpha",
            scale=lambda fields: fields["randlora_alpha"] / fields["r"],
            check=why_not_saved,
            settings=frozenset({"r"}),
            fits=lambda settings, shapes: (
                None
                if shapes[LAMBDA][:1] == (settings["r"],)
                else f"r is {settings['r']}, and its factors have another"
            ),
            # As they are stored, sparse ones are what they are
            harmless=frozenset(
                {"projection_prng_key", "save_projection", "sparse", "very_sparse", "randlora_dropout", "init_weights"}
            ),
        )
    },
)
