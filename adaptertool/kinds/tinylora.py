"""TinyLoRA: W' = W + w·B·(Σ_i v_i·P_i)·A, with A (r, in) and B (out, r) of the weight's singular vectors, u random
matrices P (u, r, r), and v (u,), which is trained and shared.

Source: "Learning to Reason in 13 Parameters" (arXiv:2602.04118). Checked against PEFT 0.21.2 in the tests. Where P is
not saved, PEFT makes it anew by a generator. Where there are several v, which module has which depends on the
order of the model's modules, which is not saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import product, products, terms_of, whole
from adaptertool.kinds.spelling import Spelling
from adaptertool.kinds.vera import why_not_saved
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

A, B, P, V = "tinylora_A", "tinylora_B", "tinylora_P", "tinylora_v"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (r, in), B (out, r), P (u, r, r) and v (u,) for a weight (out, in), also for that of an embedding."""
    if len(weight) != 2 or not factors[A] or not factors[A][0] or not factors[V]:
        return None
    rank, count = factors[A][0], factors[V][0]
    return {A: (rank, weight[1]), B: (weight[0], rank), P: (count, rank, rank), V: (count,)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """LoRA of rank u·r·r, with v_i·B[:, j] and P_i[j, k]·A[k]: what it sums over is i, j and k."""
    a, b, p, v = (factors[role] for role in (A, B, P, V))
    (count, rank, _), (out, wide) = p.shape, weight
    inner, of_b, of_a = count * rank * rank, terms_of(b, v), terms_of(p, a)

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        terms = products(read(b, first, last)[:, None, :], whole(read, v)[None, :, None], of_b)
        return [term.reshape(last - first, -1).repeat(rank, axis=1) for term in terms]

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        terms = products(whole(read, p)[..., None], whole(read, a)[None, None], of_a)
        return [term.reshape(inner, wide)[first:last] for term in terms]

    return [product((a, b, p, v), (out, inner, wide), (left, of_b), (right, of_a), scale)]


TINYLORA = Kind(
    name="tinylora",
    roles=frozenset({A, B, P, V}),
    by_row=frozenset({B}),
    by_column=frozenset({A}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    spellings={
        "peft": Spelling(
            tag="TINYLORA",
            keys={f".{role}": role for role in (A, B, P)},
            shared={f"base_model.{V}.0": V},
            rank=None,  # that of small weights is smaller
            alpha=None,
            scale=lambda _: 1.0,
            check=why_not_saved,
            harmless=frozenset(
                {"r", "u", "weight_tying", "projection_seed", "save_projection", "init_v_bound", "tinylora_dropout"}
                | {"init_weights"}
            ),
            refused={
                f"base_model.{V}.": "which of several vectors belongs to which module depends on the order of the "
                "model's modules, which is not saved: only weight_tying = 1 is supported"
            },
        )
    },
)
