"""GLoRA: W' = W + w·(W ⊙ A + B), with A and B each a product of low rank, a column, one number, or nothing.

Source: A. Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning" (arXiv:2306.07967).
Checked against PEFT 0.21.2 in the tests. It changes the bias of a layer too, b' = b + b ⊙ D + E + W·C: that is refused
where these are saved. What is turned off, or needs a bias that is not there, is saved as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import InputError, shown
from adaptertool.kinds import hira
from adaptertool.kinds.hira import HIRA
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.lora import LORA
from adaptertool.kinds.lora import A as LORA_A
from adaptertool.kinds.lora import B as LORA_B
from adaptertool.kinds.made import made, whole
from adaptertool.kinds.misreadings import ZEROS as NOTHING
from adaptertool.kinds.misreadings import ignored
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

A, B = "glora_A", "glora_B"  # what W is multiplied with, and what is added
TALL, FLAT, ONE = ".Xd", ".Xu", ".X"
ZEROS = tuple(f"glora_{side}.zeros" for side in "CDE")
_ROLES = frozenset({*(side + which for side in (A, B) for which in (TALL, FLAT, ONE)), *ZEROS})
_BIAS = (
    "the layer has a bias, which GLoRA changes by sums over the weight; that is not supported yet: only layers without"
)
_OFF = "with config_A_B = none it changes biases alone, which is not supported yet"


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
            keys={f".{role}": role for role in sorted(_ROLES)},
            rank=None,
            alpha=None,
            scale=lambda _: 1.0,
            harmless=frozenset({"r", "config_A_B", "config_C", "config_D_E", "init_weights"}),
            refused={f".glora_{side}{which}": _BIAS for side in "CDE" for which in (TALL, FLAT, ONE)}
            | {f".glora_{side}.zeros": _OFF for side in "AB"},
        )
    },
)
