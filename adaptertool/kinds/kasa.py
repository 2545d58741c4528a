"""KaSA: W' = T(W) + s·B·diag(d)·A, where T(W) is the weight without its r smallest singular values, and d (r,) was
trained as A and B were: PEFT takes these out of the base when it makes the adapter, and again wherever it loads it.

T(W) is made anew: W − U₀·diag(σ₀)·V₀ in float64, of the r smallest singular values and their vectors, summed from the
largest on; and rounded to the dtype of the base, where that has 16 bits, as it was when training began. It errs as
OSF's does (kinds.osf), and is refused as that is where it is open which singular values are the smallest. With weights,
W + w·(W' − W) is meant, as of every kind: with weight 0 the base as it is.

Source: F. Wang et al., "KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models" (arXiv:2412.06071).
Checked against PEFT 0.21.2 in the tests, which decomposes in float32, and has it on linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.kinds.difference import DELTA, DIFFERENCE
from adaptertool.kinds.kind import Change, Kind, Misreading, Part, Shape
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import made, product, products, remembered, terms_of
from adaptertool.kinds.misreadings import ONES, ignored
from adaptertool.kinds.osf import smallest_of
from adaptertool.numerics.decomposed import change_without
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

DIAGONAL, WEIGHT = "lora_diag", "weight"
NOTE = (
    "KaSA takes the smallest singular values out of each weight before it adds to it. They are decomposed in float64 "
    "by LAPACK: right to rounding errors, which may differ between machines. Where the base has 16 bits, what stays "
    "is rounded to them, as PEFT does when it loads the base so: give it the base as it was when the adapter was made, "
    "from which nothing has been taken"
)


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (r, in), B (out, r) and d (r,) for a weight (out, in), with r below both."""
    if len(weight) != 2 or not factors[A] or not 0 < factors[A][0] < min(weight):
        return None
    rank = factors[A][0]
    return {A: (rank, weight[1]), B: (weight[0], rank), DIAGONAL: (rank,)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """The difference T(W) − W, then LoRA with diag(d)·A in the place of A. Rows raise UnsupportedError where it is open
    which singular values are the smallest, and InputError where the weight is not finite."""
    return [_truncated(factors[WEIGHT], factors[A].shape[0], weight), _added(factors, weight, scale)]


def _truncated(base: Ref, count: int, weight: Shape) -> Part:
    found, dtype = remembered(lambda read: smallest_of(read, base, count, rounded=False)), base.stored[0].spec.dtype

    def rows(read: ReadRows, first: int, last: int) -> Array:
        taken = found(read)
        return change_without(read(base, first, last), taken.left[first:last], taken.right, dtype)

    return Part(DIFFERENCE.name, {DELTA: made(base.stored, weight, rows, costly=True)}, 1.0)


def _added(factors: Mapping[str, Ref], weight: Shape, scale: float) -> Part:
    a, b, d = factors[A], factors[B], factors[DIAGONAL]
    terms = terms_of(a, d)

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return products(read(a, first, last), read(d, first, last), terms)

    left = (lambda read, first, last: [read(b, first, last)]), 1
    return product((a, b, d), (weight[0], a.shape[0], weight[1]), left, (right, terms), scale)


def _nothing_taken(change: Change) -> Sequence[Part]:
    return [_added(change.factors, change.weight, change.scale)]


KASA = Kind(
    name="kasa",
    roles=frozenset({A, B, DIAGONAL}),
    by_row=frozenset({B}),
    by_column=frozenset({A}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    reads=WEIGHT,
    misreadings=(
        Misreading("taken-for-lora", "B·diag(d)·A is added, and nothing is taken away", _nothing_taken),
        *ignored(becomes, ONES, DIAGONAL),
    ),
)
