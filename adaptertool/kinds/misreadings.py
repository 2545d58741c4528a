"""What other tools may take kinds for that come down to others: the same formula, of other factors or settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.kind import Becomes, Change, Misreading, Part
from adaptertool.kinds.made import made, whole
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

ONES, ZEROS = np.ones_like, np.zeros_like


def ignored(becomes: Becomes, like: Callable[[Array], Array], *roles: str) -> tuple[Misreading, ...]:
    """For each role: its factor is not read, which is the same as if it were all ones, or zeros."""
    return tuple(with_factor(becomes, "factor-ignored", f"{role} is not in it", role, like) for role in roles)


def with_factor(becomes: Becomes, code: str, detail: str, role: str, how: Callable[[Array], Array]) -> Misreading:
    """`how` is done to all of one factor, where there is that."""

    def parts(change: Change) -> Sequence[Part]:
        ref = change.factors.get(role)
        if ref is None:
            return []
        return becomes({**change.factors, role: _other(ref, how)}, change.weight, change.scale, change.settings)

    return Misreading(code, detail, parts)


def _other(ref: Ref, how: Callable[[Array], Array]) -> Ref:
    def rows(read: ReadRows, first: int, last: int) -> Array:
        return how(whole(read, ref)).reshape(ref.shape[0], -1)[first:last]

    return made([ref], ref.shape, rows)


def with_scale(becomes: Becomes, code: str, detail: str, how: Callable[[float], float]) -> Misreading:
    return Misreading(
        code, detail, lambda change: becomes(change.factors, change.weight, how(change.scale), change.settings)
    )


def with_settings(
    becomes: Becomes, code: str, detail: str, how: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Misreading:
    """Settings as `how` makes them; none where it makes none."""

    def parts(change: Change) -> Sequence[Part]:
        settings = how(change.settings)
        return becomes(change.factors, change.weight, change.scale, settings) if settings else []

    return Misreading(code, detail, parts)


def on_other_side(becomes: Becomes) -> Misreading:
    """What is meant for columns is done to rows, or the reverse: where both are as many."""

    def parts(change: Change) -> Sequence[Part]:
        if not is_square(change):
            return []
        return becomes(change.factors, change.weight, change.scale, change.settings)

    return Misreading("other-side", "inputs are taken for outputs", parts)


def is_square(change: Change) -> bool:
    """Whether the weight is a square matrix."""
    return len(change.weight) == 2 and change.weight[0] == change.weight[1]
