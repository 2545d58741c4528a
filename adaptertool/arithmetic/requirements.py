"""What the edits of a tensor demand of the arithmetic they are made in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptertool.codecs import BY_DTYPE, F16
from adaptertool.kinds import BY_NAME, FULL, LORA
from adaptertool.spec.plan import Edit


@dataclass(frozen=True, slots=True)
class Requirements:
    """before:   what the base has is needed to the end, for norms of it
    rational: an element of the result is a sum of products of what is stored: there are no norms
    single:   float32 serves: products, and norms only of what the base has, which are float64 all the same
    few_bits: the numbers have so few bits that float64 may compute with them exactly
    width:    how many numbers of a factor go into one element, at most
    """

    before: bool
    rational: bool
    single: bool
    few_bits: bool
    width: int


def requirements_of(edits: Sequence[Edit]) -> Requirements:
    kinds = [BY_NAME[edit.kind] for edit in edits]
    has_norms = [kind.squares is not None for kind in kinds]
    first = [edit.on_base or number == 0 for number, edit in enumerate(edits)]
    stored = [ref for edit in edits if edit.kind != FULL.name for ref in edit.factors.values()]
    widths = [
        ref.shape[0]
        for kind, edit in zip(kinds, edits, strict=True)
        for role, ref in edit.factors.items()
        if role in kind.by_column
    ]
    return Requirements(
        before=any(edit.on_base for edit in edits),
        rational=not any(has_norms),
        single=all((norm and alone) or kind is LORA for kind, norm, alone in zip(kinds, has_norms, first, strict=True)),
        few_bits=not any(has_norms) and all(BY_DTYPE[ref.spec.dtype].digits <= F16.digits for ref in stored),
        width=max(widths, default=1),
    )
