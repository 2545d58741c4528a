"""FRoD: W' = W + w·(U·(S + diag(λ))·Vᵀ − W), where S (in, in) has few elements, which were trained as λ (in,) was, and
V (in, in) is that of all layers of a sort. U (out, in) is what the base gives: the columns of W·V⁻ᵀ, each of length 1,
in float32, and then in the dtype that V is saved in. Before training λ are the lengths, and S is 0.

So what was trained is not W plus a change, but another weight; and an adapter that was not trained is the base as far
as U and λ have been rounded alone. The inverse is taken in float64, as PEFT does, and what it rounds of U to float32 is
known but for (in)·2⁻⁵³ times the condition of V; the products S·Vᵀ are float64, and err by 2⁻⁵² times as many of their
sums of magnitudes as S has elements in a row.

Source: "FRoD: Full-Rank Efficient Fine-Tuning with Rotational Degrees" (doi.org/10.1609/aaai.v40i31.39813). Checked
against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.kinds.gain import GAIN, G
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.lora import LORA
from adaptertool.kinds.lora import A as LORA_A
from adaptertool.kinds.lora import B as LORA_B
from adaptertool.kinds.made import made, remembered, whole
from adaptertool.kinds.misreadings import ZEROS, ignored
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.decomposed import unit_columns
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

LAMBDA, VALUES, V, PLACES, SIZE = "frod_lambda_l", "frod_lambda_s_values", "frod_V", "frod_s_indices", "frod_s_size"
WEIGHT = "weight"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """λ (in,), V (in, in), n elements of S and their places (2, n), for a weight (out, in)."""
    if len(weight) != 2 or len(factors[VALUES]) != 1:
        return None
    (count,), wide = factors[VALUES], weight[1]
    return {LAMBDA: (wide,), VALUES: (count,), V: (wide, wide), PLACES: (2, count), SIZE: (2,)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """The weight times 0, then LoRA with U and (S + diag(λ))·Vᵀ. Rows raise InputError for places outside of S, and
    UnsupportedError where V has no inverse."""
    (out, wide), base, v = weight, factors[WEIGHT], factors[V]
    own = [factors[role] for role in (LAMBDA, VALUES, V, PLACES, SIZE)]
    left = remembered(lambda read: _left(read, base, v))
    middle = remembered(lambda read: _middle(read, factors))
    nothing = made((v,), weight, lambda _read, first, last: np.zeros((last - first, wide)), plain=True)
    pair = {
        LORA_A: made(own, (wide, wide), lambda read, first, last: middle(read)[first:last], costly=True),
        LORA_B: made((v, *base.stored), (out, wide), lambda read, first, last: left(read)[first:last], costly=True),
    }
    return [Part(GAIN.name, {G: nothing}, 1.0), Part(LORA.name, pair, 1.0)]


def _left(read: ReadRows, base: Ref, v: Ref) -> Array:
    """U (out, in)"""
    found = unit_columns(whole(read, base), whole(read, v), v.spec.dtype)
    if found is None:
        raise UnsupportedError(
            f"{v.path}: {shown(v.spec.name)} has no inverse, or one that rounding makes, so the machine that trained "
            "chose what was trained: merge it with PEFT (merge_and_unload), on that machine"
        )
    return found


def _middle(read: ReadRows, factors: Mapping[str, Ref]) -> Array:
    """(S + diag(λ))·Vᵀ (in, in). What S has twice is added up."""
    turned, places = whole(read, factors[V]).T, whole(read, factors[PLACES])
    size, values = whole(read, factors[SIZE]), whole(read, factors[VALUES])
    wide = len(turned)
    if size.tolist() != [wide, wide] or not ((places >= 0) & (places < wide)).all():
        ref = factors[PLACES]
        raise InputError(
            f"{ref.path}: {shown(ref.spec.name)} has places outside of {wide:,} x {wide:,}, or {SIZE} says another size"
        )
    sparse = np.zeros((wide, wide))
    np.add.at(sparse, tuple(places.astype(np.int64)), values)
    return sparse @ turned + whole(read, factors[LAMBDA])[:, None] * turned


def category(module: str) -> str:
    """The sort of layer that a module is, by the ends of its name, as PEFT names it: what V they have in common."""
    parts = module.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    if parts[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return f"{parts[-2]}_{parts[-1]}"


def check(fields: Mapping[str, Any]) -> str | None:
    """Why these settings are not handled, or None."""
    if fields.get("save_projection") is True:
        return None
    return (
        "save_projection is not true, so V is not in its file: PEFT makes it anew of the base, by a decomposition "
        "whose signs the machine chooses. Load it with PEFT on the machine that trained it, set save_projection in "
        "its peft_config, and save it again"
    )


FROD = Kind(
    name="frod",
    roles=frozenset({LAMBDA, VALUES, V, PLACES, SIZE}),
    places=frozenset({PLACES, SIZE}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    reads=WEIGHT,
    misreadings=ignored(becomes, ZEROS, VALUES),
    spellings={
        "peft": Spelling(
            tag="FROD",
            keys={f".{role}": role for role in (LAMBDA, VALUES)},
            of_sorts={f"base_model.{role}.": role for role in (V, PLACES, SIZE)},
            sort=category,
            integers=frozenset({PLACES, SIZE}),
            rank=None,
            alpha=None,
            scale=lambda _: 1.0,
            check=check,
            note="what it makes of each weight is solved in float64 by LAPACK, and rounded to the dtype that V is "
            "saved in: right to rounding errors, which may differ between machines",
            harmless=frozenset(
                {"projection_prng_key", "save_projection", "frod_dropout", "init_weights", "sparse_rate"}
                | {"regularization_alpha", "progressbar", "runtime_offload_base_weight"}
            ),
        )
    },
)
