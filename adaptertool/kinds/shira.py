"""SHiRA: a sparse change, W' = W + w·D, with D[i, j] = v for each v of shira_weight and (i, j) of shira_indices.

Source: K. Bhardwaj et al., "Sparse High Rank Adapters" (arXiv:2406.13175). Checked against PEFT 0.21.2 in the tests,
which has them on linear layers, and always with scale 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import InputError, shown
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import whole
from adaptertool.kinds.sparse import sparse
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

WEIGHT, INDICES = "shira_weight", "shira_indices"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """n elements (n,) and their places (2, n) for a weight (out, in)."""
    if len(weight) != 2 or len(factors[WEIGHT]) != 1:
        return None
    return {WEIGHT: factors[WEIGHT], INDICES: (2, factors[WEIGHT][0])}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """D as a difference. Its rows raise InputError for indices that are no places in the weight, each named once."""
    values, indices = factors[WEIGHT], factors[INDICES]

    def elements(read: ReadRows) -> tuple[Any, Any, Array]:
        places = whole(read, indices)
        along, across = places.astype(np.int64)  # on Windows PEFT saves them as floats
        at = along * weight[1] + across
        inside = (places >= 0) & (places < np.array(weight)[:, None]) & (places == (along, across))
        if not inside.all():
            raise InputError(
                f"{indices.path}: {shown(indices.spec.name)} holds {places[~inside][0]:g}, no place in a weight of "
                f"{weight[0]} × {weight[1]}"
            )
        if not (at[1:] > at[:-1]).all() and len(np.unique(at)) < len(at):  # in order, as PEFT saves them
            raise InputError(f"{indices.path}: {shown(indices.spec.name)} names one element of the weight twice")
        return along, across, whole(read, values)

    return [sparse((values, indices), weight, elements, scale)]


SHIRA = Kind(
    name="shira",
    roles=frozenset({WEIGHT, INDICES}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    spellings={
        "peft": Spelling(
            tag="SHIRA",
            keys={f".{role}": role for role in (WEIGHT, INDICES)},
            rank=None,
            alpha=None,
            integers=frozenset({INDICES}),
            harmless=frozenset({"r", "mask_type", "random_seed", "init_weights"}),
        )
    },
)
