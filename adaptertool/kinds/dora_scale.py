"""DoRA as kohya's tools and LyCORIS write it, over LoRA, LoHa or LoKr: V = W + ΔW; W' = (m / ‖V‖)·V, with the norm of
each row where m (`dora_scale`) is (out, 1, ...), as in the paper, and of each column where it is (1, in, ...), as in
LyCORIS before 3.2.

LyCORIS adds the smallest step of its dtype to the norm, against divisions by 0; that is not done here.
Source: LyCORIS 4.1.3 (functional/general.py), against which this is checked in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds import loha
from adaptertool.kinds.difference import DELTA
from adaptertool.kinds.dora import DORA, MAGNITUDE
from adaptertool.kinds.dora_channels import DORA_CHANNELS, PLACES
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.loha import LOHA
from adaptertool.kinds.loha_tucker import LOHA_TUCKER
from adaptertool.kinds.lokr import LYCORIS_LOKR
from adaptertool.kinds.lora import LORA, A, B
from adaptertool.kinds.lora_tucker import LORA_TUCKER
from adaptertool.kinds.made import made, product, products, remembered, terms_of, turned, whole, with_shortcut
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

SCALE = "dora_scale"


def over(kind: Kind, name: str, tag: str) -> Kind:
    """DoRA over the change of a kind that changes a weight by ΔW."""
    own = kind.spellings["kohya"]

    def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
        expected = kind.shapes(weight, {role: shape for role, shape in factors.items() if role != SCALE})
        return None if expected is None else _with_scale(weight, factors[SCALE], expected)

    def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
        """DoRA with m as a vector; where it belongs to columns, of the transpose: Wᵀ + s·Aᵀ·Bᵀ."""
        inner, m = {role: ref for role, ref in factors.items() if role != SCALE}, factors[SCALE]
        parts = (
            [Part(kind.name, inner, scale)] if kind.becomes is None else kind.becomes(inner, weight, scale, settings)
        )
        a, b = _product(parts, inner, weight)
        by_row = m.shape[0] == weight[0] and (len(m.shape) == 1 or m.shape[1] == 1)
        places = 1 if by_row else math.prod(weight[2:])
        numbers = remembered(lambda read: np.repeat(whole(read, m).reshape(-1), places))
        length = made([m], (m.spec.numel * places,), lambda read, first, last: numbers(read)[first:last], plain=True)
        if by_row:
            return [Part(DORA.name, {A: a, B: b, MAGNITUDE: length}, scale)]
        factors = {A: _flipped(b), B: _flipped(a), MAGNITUDE: length}
        if places == 1:
            return [Part(DORA.name, factors, scale, turned=True)]
        factors[PLACES] = made([m], (places, 1), lambda _, first, last: np.ones((last - first, 1)))
        return [Part(DORA_CHANNELS.name, factors, scale, turned=True)]

    return Kind(
        name=name,
        roles=kind.roles | {SCALE},
        optional=kind.optional,
        shapes=shapes,
        becomes=becomes,
        spellings={"kohya": Spelling(tag=tag, keys={**own.keys, f".{SCALE}": SCALE}, rank_of=own.rank_of)},
    )


def _with_scale(weight: Shape, given: Shape, expected: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """m (out, 1, ...) or (out,), or (1, in, 1, ...)."""
    if given == (weight[0], *[1] * (len(given) - 1)):
        return {**expected, SCALE: given}
    if given == (1, weight[1], *[1] * (len(given) - 2)):
        return {**expected, SCALE: given}
    return {**expected, SCALE: (weight[0], *[1] * (len(weight) - 1))}


def _product(parts: Sequence[Part], factors: Mapping[str, Ref], weight: Shape) -> tuple[Ref, Ref]:
    """(A, B) whose product is the change, but for the scale: exact."""
    first, *more = parts
    if first.kind == LORA.name:
        return first.factors[A], first.factors[B]
    if first.kind == LOHA.name:
        return _of_hadamard(first.factors, factors, weight)
    out, wide = weight[0], math.prod(weight[1:])
    terms = [part.factors[DELTA] for part in (first, *more)]  # of float64, high and low
    size, sources = min(out, wide), tuple(factors.values())

    def change(read: ReadRows, begin: int, end: int) -> Array:
        return np.concatenate([read(term, begin, end) for term in terms], axis=1)

    def whole_change(read: ReadRows, begin: int, end: int, _: bool) -> tuple[Array, float]:
        high = read(terms[0], begin, end)
        return high, 2.0**-52 * float(abs(high).max(initial=0.0)) + 2.0**-1060 if len(terms) > 1 else 0.0

    def ones(_: ReadRows, begin: int, end: int) -> Array:
        return (np.arange(begin, end)[:, None] % size == np.arange(size)).astype(np.float64)

    count = size * len(terms)
    if wide <= out:  # the change, times ones on a diagonal for each term
        a, b = made(sources, (count, wide), ones, plain=True), made(sources, (out, count), change, plain=True)
    else:
        a = made(sources, (count, wide), lambda read, begin, end: _stacked(read, terms)[begin:end], plain=True)
        b = made(sources, (out, count), lambda _, begin, end: np.tile(np.eye(out)[begin:end], len(terms)), plain=True)
    return a, with_shortcut(b, a, whole_change)


def _stacked(read: ReadRows, terms: Sequence[Ref]) -> Array:
    return np.concatenate([read(term, 0, term.shape[0]) for term in terms])


def _of_hadamard(factors: Mapping[str, Ref], stored: Mapping[str, Ref], weight: Shape) -> tuple[Ref, Ref]:
    """(B₁·A₁) ⊙ (B₂·A₂) as one product, by products of rows of B and of columns of A (kinds.loha.low_rank).

    Its numbers are those that are stored, or, with a core, products of two.
    """
    b1, a1, b2, a2 = (factors[role] for role in (loha.B1, loha.A1, loha.B2, loha.A2))
    rank, wide = a1.shape[0] * a2.shape[0], math.prod(weight[1:])
    cores = any("_t" in role for role in stored)
    terms = 2 if cores else terms_of(*stored.values())

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        one, two = read(b1, first, last)[:, :, None], read(b2, first, last)[:, None, :]
        return [term.reshape(last - first, rank) for term in products(one, two, terms)]

    def right(read: ReadRows, _first: int, _last: int) -> Sequence[Array]:
        one, two = read(a1, 0, a1.shape[0])[:, None, :], read(a2, 0, a2.shape[0])[None]
        return [term.reshape(rank, wide) for term in products(one, two, terms)]

    def whole_product(read: ReadRows, first: int, last: int, _: bool) -> tuple[Array, float]:
        sides = {loha.B1: read(b1, first, last), loha.B2: read(b2, first, last)}
        return loha.product(
            {**sides, **{role: read(factors[role], 0, factors[role].shape[0]) for role in (loha.A1, loha.A2)}}
        )

    shape, both = (weight[0], rank, wide), ((left, terms), (right, terms))
    part = product(stored.values(), shape, *both, 1.0, shortcut=whole_product)
    return part.factors[A], part.factors[B]


def _flipped(ref: Ref) -> Ref:
    """The transpose of a factor, as a matrix: of a convolution's as well."""
    rows, columns = ref.shape[0], math.prod(ref.shape[1:])
    flat = (
        ref if len(ref.shape) == 2 else made([ref], (rows, columns), lambda read, first, last: read(ref, first, last))
    )
    return turned(flat)


DORA_SCALE = over(LORA, "dora-scale", "DORA")
DORA_OVER: tuple[Kind, ...] = (
    DORA_SCALE,
    over(LORA_TUCKER, "dora-lora-tucker", "DORA_LORA_TUCKER"),
    over(LOHA, "dora-loha", "DORA_LOHA"),
    over(LOHA_TUCKER, "dora-loha-tucker", "DORA_LOHA_TUCKER"),
    over(LYCORIS_LOKR, "dora-lokr", "DORA_LOKR"),
)
