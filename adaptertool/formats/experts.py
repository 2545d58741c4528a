"""Experts that a format has in one tensor: what all of them have changed, joined from what each has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaptertool.architectures.gguf_experts import count_in
from adaptertool.formats.saving import refuse
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import made, whole
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.adapter import Module
from adaptertool.spec.portable import Portable
from adaptertool.spec.tensors import ReadRows, Ref


def complete(portable: Portable, experts: Mapping[int, Module], what: str) -> list[Module]:
    """The changes of all experts of a stack, in order. Raises UnsupportedError."""
    changes = [experts[number] for number in sorted(experts)]
    count = count_in(portable.config, portable.gguf) or max(experts) + 1
    forms = {(one.factors[A].shape[1:], one.factors[B].shape[:1], one.scale) for one in changes}
    if sorted(experts) != list(range(count)) or len(forms) > 1:
        refuse(
            portable,
            changes,
            f"{len(changes)} of {count} experts, with {len(forms)} sizes and scales; {what} has all in one tensor, "
            "alike",
        )
    return changes


def filled(factor: Ref, along: int, rank: int) -> Ref:
    """The factor with zeros up to that rank, its dimension 0 or 1."""
    missing = rank - factor.shape[along]
    if not missing:
        return factor
    height, width = factor.shape

    def rows(read: ReadRows, first: int, last: int) -> Array:
        held = read(factor, min(first, height), min(last, height))
        return np.pad(held, ((0, last - first - len(held)), (0, missing if along else 0)))

    return made(factor.stored, (height, rank) if along else (rank, width), rows)


def stacked(matrices: Sequence[Ref]) -> Ref:
    """All of them in one tensor (E, n, m)."""
    sources = [ref for matrix in matrices for ref in matrix.stored]

    def rows(read: ReadRows, first: int, last: int) -> Array:
        return np.stack([whole(read, matrix).reshape(-1) for matrix in matrices[first:last]])

    return made(sources, (len(matrices), *matrices[0].shape), rows)
