"""PVeRA: VeRA of a mean; what is trained beside it, how far samples are from that, plays no part once it is merged.

A (2·r, in) and d (2·r) have the rows of the mean first, then those of the logarithm of the variance.

Source: PEFT 0.21.2 (tuners/pvera), against which this is checked in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.kinds import vera
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.misreadings import ONES, ignored
from adaptertool.kinds.spelling import Spelling
from adaptertool.kinds.vera import why_not_saved
from adaptertool.spec.tensors import Ref

A, B, LEFT, RIGHT = "pvera_A", "pvera_B", "pvera_lambda_b", "pvera_lambda_d"
_AS_VERA = {A: vera.A, B: vera.B, LEFT: vera.LEFT, RIGHT: vera.RIGHT}
_SAMPLED = "what samples while it is used cannot be merged"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """Those of VeRA, but for twice as many rows of A and d."""
    a = factors[A]
    if not a or a[0] % 2:
        return None
    own = vera.shapes(weight, {vera.A: (a[0] // 2, *a[1:]), vera.B: factors[B]})
    if own is None:
        return None
    made = {role: own[name] for role, name in _AS_VERA.items()}
    return made | {role: (2 * made[role][0], *made[role][1:]) for role in (A, RIGHT)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
    """What VeRA comes down to, with the first halves of A and d."""
    half = factors[A].shape[0] // 2
    mean = {
        name: factors[role].rows(0, half) if role in (A, RIGHT) else factors[role] for role, name in _AS_VERA.items()
    }
    return vera.becomes(mean, weight, scale, settings)


def check(fields: Mapping[str, Any]) -> str | None:
    """Why the settings are not handled."""
    if fields.get("sample_at_inference"):
        return f"sample_at_inference = true: {_SAMPLED}"
    return why_not_saved(fields)


PVERA = Kind(
    name="pvera",
    roles=frozenset(_AS_VERA),
    by_row=frozenset({LEFT, B}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    misreadings=ignored(becomes, ONES, LEFT, RIGHT),
    spellings={
        "peft": Spelling(
            tag="PVERA",
            keys={f".{role}": role for role in (LEFT, RIGHT)},
            shared={f"base_model.{role}": role for role in (A, B)},
            alpha=None,
            scale=lambda _: 1.0,
            check=check,
            harmless=frozenset(
                {"projection_prng_key", "save_projection", "pvera_dropout", "d_initial", "init_weights"}
                | {"sample_at_inference", "generator_seed"}
            ),
        )
    },
)
