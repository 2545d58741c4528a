"""Super-Tuning: elements of a weight get a number added, W' = W + w·D, with D[p] = v for each v of values and p of
indices, places in the flattened weight. Supra: a LoRA besides, W' = W + w·(D + s·B·A), with s = alpha/r.

Source: arXiv:2607.09287, as PEFT 0.21.2 has it, on linear layers. Checked against that in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import InputError, MismatchError, shown
from adaptertool.kinds import lora
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import whole
from adaptertool.kinds.sparse import sparse
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

VALUES, INDICES, A, B = "supertuning_values", "supertuning_indices", "supertuning_lora_A", "supertuning_lora_B"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """n elements (n,) and their places (n,) for a weight (out, in); A (r, in) and B (out, r) where there is a LoRA."""
    if len(weight) != 2 or len(factors[VALUES]) != 1 or (A in factors) != (B in factors):
        return None
    sparsely = {VALUES: factors[VALUES], INDICES: factors[VALUES]}
    if A not in factors:
        return sparsely
    if not factors[A]:
        return None
    return {**sparsely, A: (factors[A][0], weight[1]), B: (weight[0], factors[A][0])}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
    """A difference, and LoRA. Raises MismatchError where the config has another rank than the LoRA, and the rows of
    the difference InputError for indices that are no places in the weight, each named once."""
    values, indices = factors[VALUES], factors[INDICES]

    def elements(read: ReadRows) -> tuple[Any, Any, Array]:
        places = whole(read, indices)
        at = places.astype(np.int64)
        inside = (places >= 0) & (places < math.prod(weight)) & (places == at)
        if not inside.all():
            raise InputError(
                f"{indices.path}: {shown(indices.spec.name)} holds {places[~inside][0]:g}, no place in a weight of "
                f"{weight[0]} × {weight[1]}"
            )
        if len(np.unique(at)) < len(at):
            raise InputError(f"{indices.path}: {shown(indices.spec.name)} names one element of the weight twice")
        return at // weight[1], at % weight[1], whole(read, values)

    parts = [sparse((values, indices), weight, elements, 1.0)]
    rank, a = settings["r"], factors.get(A)
    if (rank or 0) != (0 if a is None else a.shape[0]):
        what = "holds no LoRA" if a is None else f"holds a LoRA of rank {a.shape[0]}"
        raise MismatchError(f"{values.path}: {shown(values.spec.name)}: r is {rank} in the config, and the file {what}")
    if a is not None:
        parts.append(Part(lora.LORA.name, {lora.A: a, lora.B: factors[B]}, scale))
    return parts


def _check(fields: Mapping[str, Any]) -> str | None:
    rank = fields.get("r")
    if rank is not None and (type(rank) is not int or rank < 1):
        return f"r = {shown(rank)[:80]} is no rank: a whole number from 1 on, or null"
    if fields.get("save_precomputed_indices") is False:
        return (
            "save_precomputed_indices is false, so the file does not tell which elements its values are for; PEFT "
            "finds them by their size in the base: load it there, set save_precomputed_indices to true in its config, "
            "and save it again"
        )
    return None


def _scale(fields: Mapping[str, Any]) -> float:
    return fields["lora_alpha"] / fields["r"] if fields.get("r") else 1.0


SUPERTUNING = Kind(
    name="supertuning",
    roles=frozenset({VALUES, INDICES, A, B}),
    optional=frozenset({A, B}),
    shapes=shapes,
    becomes=becomes,
    spellings={
        "peft": Spelling(
            tag="SUPERTUNING",
            keys={f".{VALUES}": VALUES, f".{INDICES}": INDICES, f".{A}.weight": A, f".{B}.weight": B},
            rank=None,
            alpha=None,
            scale=_scale,
            integers=frozenset({INDICES}),
            settings=frozenset({"r"}),
            check=_check,
            harmless=frozenset(
                {"lora_alpha", "lora_dropout", "sparsity", "select_top", "init_weights", "save_precomputed_indices"}
            ),
        )
    },
)
