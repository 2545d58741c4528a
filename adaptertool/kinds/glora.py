"""GLoRA: W' = W + w·(W ⊙ A + B), with A and B each a product of low rank, a column, one number, or nothing.

Source: A. Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning" (arXiv:2306.07967).
Checked against PEFT 0.21.2 in the tests. Where the layer has a bias, b' = b + w·(b ⊙ D + E + W·C), with the W that the
base has, C (in, 1) a product or a column, and D and E vectors, or one number each. W·C is within about in·2^-104 of it,
in sums of magnitudes. What is turned off, or needs a bias that is not there, is saved as zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import InputError, MismatchError, by, shown
from adaptertool.kinds import hira
from adaptertool.kinds.blocks import Halves
from adaptertool.kinds.difference import DELTA, DIFFERENCE
from adaptertool.kinds.hira import HIRA
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.lora import LORA
from adaptertool.kinds.lora import A as LORA_A
from adaptertool.kinds.lora import B as LORA_B
from adaptertool.kinds.made import made, remembered, whole
from adaptertool.kinds.misreadings import ZEROS as NOTHING
from adaptertool.kinds.misreadings import ignored
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

A, B = "glora_A", "glora_B"  # what W is multiplied with, and what is added
TALL, FLAT, ONE = ".Xd", ".Xu", ".X"
ZEROS = tuple(f"glora_{side}.zeros" for side in "CDE")
_ROLES = frozenset({*(side + which for side in (A, B) for which in (TALL, FLAT, ONE)), *ZEROS})
C, D, E, WEIGHT = "glora_C", "glora_D.X", "glora_E.X", "weight"
_OF_BIAS = frozenset({*(C + which for which in (TALL, FLAT, ONE)), D, E})
_BIAS = "glora-bias"
_OFF = "with config_A_B = none it changes biases alone, which is not supported yet"
_AT_ONCE = 256  # rows of W


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A or B or both: (out, r) and (r, in), or a column (out, 1), or one number (1,), for a weight (out, in)."""
    expected: dict[str, Shape] = {}
    for side in (A, B):
        own = {which: factors[side + which] for which in (TALL, FLAT, ONE) if side + which in factors}
        if own.keys() == {TALL, FLAT} and own[FLAT]:
            expected |= {side + TALL: (weight[0], own[FLAT][0]), side + FLAT: (own[FLAT][0], weight[1])}
        elif own.keys() == {ONE}:
            expected[side + ONE] = (1,) if own[ONE] == (1,) else (weight[0], 1)
        elif own:
            return None
    if not expected or len(weight) != 2:
        return None
    zeros = dict(zip(ZEROS, ((weight[1], 1), (weight[0],), (weight[0],)), strict=True))
    return expected | {role: zeros[role] for role in ZEROS if role in factors}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """HiRA with A, then LoRA with B; a column, or one number, times ones. Rows raise InputError where what is saved as
    zeros has others."""
    zeros = [factors[role] for role in ZEROS if role in factors]
    sides = ((A, HIRA.name, (hira.B, hira.A)), (B, LORA.name, (LORA_B, LORA_A)))
    parts = []
    for side, kind, roles in sides:
        if (some := factors.get(side + ONE)) is not None:
            pair = _of_column(some, weight)
        elif side + TALL in factors:
            pair = factors[side + TALL], factors[side + FLAT]
        else:
            continue
        parts.append(Part(kind, dict(zip(roles, (_beside(zeros, pair[0]), pair[1]), strict=True)), scale))
    return parts


def _beside(zeros: Sequence[Ref], ref: Ref) -> Ref:
    """The factor, whose rows are read only where the others are zeros."""

    def rows(read: ReadRows, first: int, last: int) -> Array:
        for other in zeros:
            if whole(read, other).any():
                raise InputError(f"{other.path}: {shown(other.spec.name)} must be zeros, and is not")
        return read(ref, first, last) if ref.made is None else ref.made.rows(read, first, last)

    return made((*ref.stored, *zeros), ref.shape, rows)


def _of_column(ref: Ref, weight: Shape) -> tuple[Ref, Ref]:
    """(out, 1) and (1, in) whose product has the number, or that of each row, everywhere."""
    out, wide = weight

    def tall(read: ReadRows, first: int, last: int) -> Array:
        if ref.shape == (1,):
            return np.full((last - first, 1), whole(read, ref)[0])
        return read(ref, first, last)

    return made((ref,), (out, 1), tall), made(
        (ref,), (1, wide), lambda _read, first, last: np.ones((last - first, wide))
    )


def shapes_of_bias(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """C (in, r) and (r, 1), or (in, 1), for any `in`; D and E (out,) or (1,), for a bias (out,)."""
    tall, flat = factors.get(C + TALL), factors.get(C + FLAT)
    if len(weight) != 1 or (tall is None) != (flat is None) or (tall is not None and C + ONE in factors):
        return None
    expected: dict[str, Shape] = {}
    for role in (D, E):
        if role in factors:
            expected[role] = (1,) if factors[role] == (1,) else weight
    if tall and flat:
        expected |= {C + TALL: (tall[0], flat[0]), C + FLAT: (flat[0], 1)}
    if column := factors.get(C + ONE):
        expected[C + ONE] = (column[0], 1)
    return expected


def becomes_of_bias(
    factors: Mapping[str, Ref],
    weight: Shape,
    scale: float,
    settings: Mapping[str, Any],  # noqa: ARG001
) -> Sequence[Part]:
    """HiRA with D, then differences: E, and the high and the low part of W·C. Raises MismatchError for a C of other
    inputs than W has."""
    parts = []
    if (some := factors.get(D)) is not None:
        ones = made((some,), (1, 1), lambda _read, first, last: np.ones((last - first, 1)))
        parts.append(Part(HIRA.name, {hira.B: _spread(some, (*weight, 1)), hira.A: ones}, scale))
    if (some := factors.get(E)) is not None:
        parts.append(Part(DIFFERENCE.name, {DELTA: _spread(some, weight)}, scale))
    of_c = [factors[C + which] for which in (TALL, FLAT, ONE) if C + which in factors]
    if not of_c:
        return parts
    base = factors[WEIGHT]
    if base.shape != (*weight, of_c[0].shape[0]):
        raise MismatchError(
            f"{base.path}: {shown(base.spec.name)} is {base.spec}, so {shown(of_c[0].spec.name)} must have "
            f"{by(base.shape[1:])} rows, but it is {of_c[0].spec} in {of_c[0].path}; is this adapter for another model?"
        )
    halves = Halves(_products(of_c, base))

    def half(which: int) -> Ref:
        return made((*of_c, *base.stored), weight, lambda read, first, last: halves.take(read, first, last, which))

    return [*parts, *(Part(DIFFERENCE.name, {DELTA: half(which)}, scale) for which in (0, 1))]


def _spread(ref: Ref, shape: Shape) -> Ref:
    """A vector, or one number for all rows."""

    def rows(read: ReadRows, first: int, last: int) -> Array:
        return np.broadcast_to(whole(read, ref).reshape(-1, 1), (shape[0], 1))[first:last]

    return made((ref,), shape, rows)


def _products(of_c: Sequence[Ref], base: Ref) -> Callable[[ReadRows, int, int], Array]:
    """What makes rows of W·C: (2, n, 1), the high parts and the low."""

    def column(read: ReadRows) -> DoubleDouble:
        first, *more = (DoubleDouble.of(whole(read, ref)) for ref in of_c)
        return (first @ more[0] if more else first).T

    c = remembered(column)

    def both(read: ReadRows, first: int, last: int) -> Array:
        own = c(read)
        pieces = [
            (own @ DoubleDouble.of(np.ascontiguousarray(read(base, begin, min(begin + _AT_ONCE, last)).T))).parts[:2]
            for begin in range(first, last, _AT_ONCE)
        ]
        return np.concatenate(pieces, axis=2).swapaxes(1, 2)

    return both


GLORA = Kind(
    name="glora",
    roles=_ROLES,
    optional=_ROLES,
    shapes=shapes,
    becomes=becomes,
    linear=True,
    of_weight=True,
    misreadings=ignored(becomes, NOTHING, A + TALL, A + ONE, B + TALL, B + ONE),
    spellings={
        "peft": Spelling(
            tag="GLORA",
            keys={f".{role}": role for role in sorted(_ROLES | _OF_BIAS)},
            rank=None,
            alpha=None,
            scale=lambda _: 1.0,
            bias=_BIAS,
            harmless=frozenset({"r", "config_A_B", "config_C", "config_D_E", "init_weights"}),
            refused={f".glora_{side}.zeros": _OFF for side in "AB"},
        )
    },
)
GLORA_BIAS = Kind(
    name=_BIAS,
    roles=_OF_BIAS,
    optional=_OF_BIAS,
    shapes=shapes_of_bias,
    becomes=becomes_of_bias,
    linear=True,
    of_weight=True,
    reads=WEIGHT,
    misreadings=ignored(becomes_of_bias, NOTHING, *sorted(_OF_BIAS - {C + FLAT})),
)
