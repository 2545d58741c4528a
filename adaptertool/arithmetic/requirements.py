"""What the edits of a tensor demand of the arithmetic they are made in."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adaptertool.codecs import BY_DTYPE, F16
from adaptertool.kinds import kind_of
from adaptertool.records import dataclass
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import Near, Ref, Shortcut

_MOST_NEIGHBOURS = 1 << 14  # with which an element is made alone: with more, whole rows take less time


@dataclass(frozen=True, slots=True)
class Requirements:
    """before:   what the base has is needed to the end, for norms of it
    rational: an element of the result is a sum of products of what is stored: there are no norms, nor whole_rows
    whole_rows: an element depends on others of its row, and on so many, or on norms besides, that it is not made alone
    operations: those that a number system must have (numerics.ops)
    single:   float32 serves: products, and norms only of what the base has, which are float64 all the same
    few_bits: the numbers have so few bits that float64 may compute with them exactly
    width:    how many numbers of a factor go into one element, at most
    """

    before: bool
    rational: bool
    whole_rows: bool
    operations: frozenset[str]
    single: bool
    few_bits: bool
    width: int


def shortcut_of(edit: Edit) -> Shortcut | None:
    """How the product of the factors of a pair, all of both, is made in less time; None where it is not."""
    kind = kind_of(edit)
    if kind.pair is None or (edit.transposed and kind.norms is not None):
        return None
    b, a = (edit.factors[role] for role in kind.pair)
    if a.made is None or b.made is None or b.made.shortcut is None:
        return None
    shortcut = b.made.shortcut
    return shortcut if a.made.rows is shortcut.right and _all_of(a, b, shortcut.shape) else None


def near_of(edit: Edit) -> Near | None:
    """The fewer factors that serve in the place of both of a product, all of both; None where there are none."""
    kind = kind_of(edit)
    if kind.pair is None or not kind.is_product or edit.view is not None:
        return None
    b, a = (edit.factors[role] for role in kind.pair)
    if a.made is None or b.made is None or b.made.near is None:
        return None
    near = b.made.near
    return near if a.made.rows is near.of and _all_of(a, b, near.shape) else None


def _all_of(a: Ref, b: Ref, shape: tuple[int, ...]) -> bool:
    """Whether these are all rows and columns of B (out, inner) and A (inner, in), of which these three are `shape`."""
    assert a.made is not None and b.made is not None
    out, inner, wide = shape
    sizes = b.columns, b.spec.numel, a.columns, a.shape[0], a.spec.numel
    whole = sizes == (None, out * inner, None, inner, inner * wide)
    return whole and not a.made.first and not b.made.first


def requirements_of(edits: Sequence[Edit]) -> Requirements:
    kinds = [kind_of(edit) for edit in edits]
    has_norms, neighbours = [kind.norms is not None for kind in kinds], [kind.neighbours for kind in kinds]
    first = [edit.on_base or number == 0 for number, edit in enumerate(edits)]
    pairs = list(zip(kinds, edits, strict=True))
    stored = [ref for kind, edit in pairs if not kind.replaces for ref in edit.factors.values()]
    shapes = [{role: ref.shape for role, ref in edit.factors.items()} for edit in edits]
    reach = math.prod(own.count(given) for own, given in zip(neighbours, shapes, strict=True) if own)
    whole_rows = any(neighbours) and (any(has_norms) or reach > _MOST_NEIGHBOURS)
    widths = [ref.shape[0] for kind, edit in pairs for role, ref in edit.factors.items() if role in kind.by_column]
    return Requirements(
        before=any(edit.on_base for edit in edits),
        rational=not any(has_norms) and not whole_rows,
        whole_rows=whole_rows,
        operations=frozenset().union(*(kind.operations for kind in kinds)),
        single=not any(map(shortcut_of, edits))
        and all(kind.single and (alone or not norm) for kind, norm, alone in zip(kinds, has_norms, first, strict=True)),
        few_bits=not any(has_norms) and all(BY_DTYPE[ref.spec.dtype].digits <= F16.digits for ref in stored),
        width=max(widths, default=1) * (1 if whole_rows else reach),
    )
