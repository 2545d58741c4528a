"""OSF: W' = W + w·(U·diag(σ)·V − U₀·diag(σ₀)·V₀), where U₀ (out, l), σ₀ and V₀ (l, in) are the l smallest singular
values of the weight that the base has, and their vectors: these were replaced, and trained.

U₀, σ₀ and V₀ are not saved: they are decomposed anew, in float64, and then in the dtype of the base, where that has 16
bits, as they were when training began: an adapter that was not trained is the base then. Which vectors belong to equal
singular values is open, and plays no part but for what is rounded, as long as all are replaced or all stay. Where
float32 cannot tell those that stay from those that are replaced, and that matters to W (numerics.decomposed), it is
refused. With the singular values σ[1] ≥ σ[2] ≥ ... of W, and σ[k] the smallest that
stays, U₀·diag(σ₀)·V₀ errs by about (out + in)·2⁻⁵³·σ[1]·σ[k]/(σ[k] − σ[k + 1]), and where it is rounded to 16 bits by
what the vectors are rounded by.

Source: N. Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning"
(arXiv:2504.07097). Checked against PEFT 0.21.2 in the tests, which decomposes in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.kinds.kind import Change, Kind, Misreading, Part, Shape
from adaptertool.kinds.lora import LORA
from adaptertool.kinds.lora import A as LORA_A
from adaptertool.kinds.lora import B as LORA_B
from adaptertool.kinds.made import made, product, products, remembered, terms_of, whole
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.decomposed import Smallest, smallest
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

U, S, V, WEIGHT = "U_low", "S_low", "V_low", "weight"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """U (out, l), σ (l,) and V (l, in) for a weight (out, in)."""
    if len(weight) != 2 or len(factors[S]) != 1 or not 0 < factors[S][0] <= min(weight):
        return None
    (count,) = factors[S]
    return {U: (weight[0], count), S: (count,), V: (count, weight[1])}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """LoRA with what was trained, less what that replaces. Rows raise UnsupportedError where it is open what that is,
    and InputError where the weight is not finite."""
    return [_trained(factors, weight, scale), _replaced(factors[WEIGHT], factors[S], weight, -scale)]


def _trained(factors: Mapping[str, Ref], weight: Shape, scale: float) -> Part:
    u, s, v = (factors[role] for role in (U, S, V))
    terms = terms_of(s, v)

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return products(read(v, first, last), read(s, first, last), terms)

    shape, left = (weight[0], s.shape[0], weight[1]), ((lambda read, first, last: [read(u, first, last)]), 1)
    return product((u, s, v), shape, left, (right, terms), scale)


def _replaced(base: Ref, values: Ref, weight: Shape, scale: float) -> Part:
    """LoRA with as many of the smallest singular values of the base as there are `values`."""
    count, sources = values.shape[0], base.stored
    found = remembered(lambda read: smallest_of(read, base, count, rounded=True))
    factors = {
        LORA_A: made(sources, (count, weight[1]), lambda read, a, b: found(read).right[a:b], costly=True),
        LORA_B: made(sources, (weight[0], count), lambda read, a, b: found(read).left[a:b], costly=True),
    }
    return Part(LORA.name, factors, scale)


def smallest_of(read: ReadRows, base: Ref, count: int, *, rounded: bool) -> Smallest:
    """The smallest singular values of a weight, and their vectors; rounded: to the dtype of the base, where that has 16
    bits. Raises UnsupportedError where it is open which these are, and InputError where the weight is not finite."""
    stored = base.stored[0].spec
    found = smallest(whole(read, base), count, stored.dtype if rounded else "F64")
    if found is None:
        raise InputError(f"{base.path}: {shown(stored.name)} has no singular values: it is not finite")
    if not found.told:
        raise UnsupportedError(
            f"{base.path}: {shown(stored.name)}: its {count:,} smallest singular values are to be replaced, but the "
            "largest of these is so near the next that float32 cannot tell them apart, and the machine that trains "
            "chooses: merge it with PEFT (merge_and_unload), on that machine"
        )
    return found


def _added(change: Change) -> Sequence[Part]:
    """LoRA alone: nothing is taken away."""
    return [_trained(change.factors, change.weight, change.scale)]


OSF = Kind(
    name="osf",
    roles=frozenset({U, S, V}),
    by_row=frozenset({U}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    reads=WEIGHT,
    misreadings=(Misreading("taken-for-lora", "U·diag(σ)·V is added, and nothing is taken away", _added),),
    spellings={
        "peft": Spelling(
            tag="OSF",
            keys={f".osf_svd_params.{role}": role for role in (U, S, V)},
            rank=None,
            alpha=None,
            scale=lambda _: 1.0,
            note="what it replaces in each weight is decomposed in float64 by LAPACK: right to rounding errors, which "
            "may differ between machines. Where the base has 16 bits it is then rounded to them, as PEFT does when it "
            "loads the base so",
            harmless=frozenset({"effective_rank", "target_svd_config", "init_weights"}),
        )
    },
)
