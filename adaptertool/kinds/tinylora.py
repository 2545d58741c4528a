"""TinyLoRA: W' = W + w·B·(Σ_i v_i·P_i)·A, with A (r, in) and B (out, r) of the weight's singular vectors, u random
matrices P (u, r, r), and v (u,), which is trained, and shared by all modules or by those of a group.

Where there are g groups, V (g, u) has a v for each: module i of n, in the order of the model's modules, is in group
min(⌊i/⌊n/g⌋⌋, g − 1). Files do not tell i, but P does: PEFT draws it by the seed projection_seed + i.

Source: "Learning to Reason in 13 Parameters" (arXiv:2602.04118). Checked against PEFT 0.21.2 in the tests. Where P is
not saved, PEFT makes it anew by a generator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import UnsupportedError, shown
from adaptertool.kinds.drawn import normals
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.lora import A as LORA_A
from adaptertool.kinds.lora import B as LORA_B
from adaptertool.kinds.made import product, products, remembered, terms_of, whole, with_near
from adaptertool.kinds.spelling import COUNT, Spelling
from adaptertool.kinds.vera import why_not_saved
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

A, B, P, V = "tinylora_A", "tinylora_B", "tinylora_P", "tinylora_v"
SEED, TYING = "projection_seed", "weight_tying"
_FEW = 16  # numbers of P that are looked at, where it has twice as many: torch draws them sixteen at a time
_NEAR = 2.0**-6  # of the largest number of P, which may be stored in 16 bits; others of a seed lie further by far


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (r, in), B (out, r), P (u, r, r) and v (u,), or (g, u), for a weight (out, in), also for that of an
    embedding."""
    if len(weight) != 2 or not factors[A] or not factors[A][0] or len(factors[V]) not in (1, 2):
        return None
    rank, count = factors[A][0], factors[V][-1]
    return {A: (rank, weight[1]), B: (weight[0], rank), P: (count, rank, rank), V: factors[V]}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
    """LoRA of rank u·r·r, with v_i·B[:, j] and P_i[j, k]·A[k]: what it sums over is i, j and k. Its rows raise
    UnsupportedError where P does not tell which v is the module's."""
    a, b, p, v = (factors[role] for role in (A, B, P, V))
    group = remembered(lambda read: _group(whole(read, p), p, v.shape[0], settings))

    def own_of(read: ReadRows) -> Array:
        return whole(read, v) if len(v.shape) == 1 else whole(read, v)[group(read)]

    (count, rank, _), (out, wide) = p.shape, weight
    inner, of_b, of_a = count * rank * rank, terms_of(b, *v.stored), terms_of(p, a)

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        terms = products(read(b, first, last)[:, None, :], own_of(read)[None, :, None], of_b)
        return [term.reshape(last - first, -1).repeat(rank, axis=1) for term in terms]

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        terms = products(whole(read, p)[..., None], whole(read, a)[None, None], of_a)
        return [term.reshape(inner, wide)[first:last] for term in terms]

    def near(read: ReadRows) -> tuple[Array, float]:
        """(Σ v·P)·A: each sum of products has as many roundings as terms, and twice that is taken."""
        own, matrices, rows = own_of(read), whole(read, p), whole(read, a)
        with np.errstate(over="ignore", invalid="ignore"):
            middle, sizes = np.einsum("i,ijk->jk", own, matrices), np.einsum("i,ijk->jk", abs(own), abs(matrices))
            off = (count + rank + 2) * 2.0**-52 * float((sizes @ abs(rows).max(1, initial=0.0)).sum()) + 2.0**-600
            return middle @ rows, off if off < math.inf else math.inf

    part = product((a, b, p, v), (out, inner, wide), (left, of_b), (right, of_a), scale, plain=False)
    short = with_near(part.factors[LORA_B], part.factors[LORA_A], lambda read, first, last: read(b, first, last), near)
    return [part._replace(factors={**part.factors, LORA_B: short})]


def _group(matrices: Array, ref: Ref, groups: int, settings: Mapping[str, Any]) -> int:
    """The group of the module that has these P (u, r, r)."""
    count: int = settings[COUNT]
    seed = settings[SEED]
    some = matrices.ravel()[: _FEW if matrices.size >= 2 * _FEW else None]
    deviation = 1 / matrices.shape[1] ** 0.5
    off = np.array([abs(deviation * normals(seed + i, len(some)) - some).max() for i in range(count)])
    (near,) = np.nonzero(off <= _NEAR * abs(some).max())
    if len(near) != 1:
        raise UnsupportedError(
            f"{ref.path}: {shown(ref.spec.name)} is not what {SEED} = {seed} makes of one of {count} modules, so which "
            "of the vectors belongs to the module is not known: merge it with PEFT (merge_and_unload)"
        )
    return min(int(near[0]) // max(1, count // groups), groups - 1)


def fits(settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str | None:
    """Why there are not as many vectors as the config says, or None."""
    if len(shapes[V]) == 1:
        return None
    tying, count, seed = settings[TYING], settings[COUNT], settings[SEED]
    if not isinstance(tying, int | float) or type(seed) is not int or not 0 <= seed < 2**32 - count:
        return f"{TYING} and {SEED} must be numbers"
    groups = max(1, round(count * (1.0 - tying)))
    given = shapes[V][0]
    return None if groups == given else f"{TYING} makes {groups} vectors of {count} modules, and there are {given}"


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
            numbered={f"base_model.{V}.": V},
            check=why_not_saved,
            settings=frozenset({SEED, TYING}),
            fits=fits,
            harmless=frozenset({"r", "u", "save_projection", "init_v_bound", "tinylora_dropout", "init_weights"}),
        )
    },
)
