"""LoKr in PEFT's config: fields from which PEFT 0.21.2 makes factors of just the shapes that there are.

Sizes of W₁ and W₂ follow from a factorization of those of the weight, and whether they are stored whole from the rank
(tuners/lokr/layer.py: factorization, update_layer). alpha/r is multiplied in also where both are whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from adaptertool.formats.saving import refuse
from adaptertool.kinds.lokr import A1, A2, B1, B2, T2, W1, W2
from adaptertool.spec.adapter import Module
from adaptertool.spec.portable import Portable

TAG = "LOKR"
_NEAR_ROOT = -1  # the factor that asks for sizes near the square root
Shape = tuple[int, ...]


class _Fields(NamedTuple):
    decompose_factor: int
    decompose_both: bool
    use_effective_conv2d: bool


def in_config(portable: Portable, changes: Sequence[Module]) -> tuple[Mapping[str, Any], list[Module]]:
    """(the fields that decide shapes, the changes with the ranks that they have in PEFT). Raises UnsupportedError where
    no fields make factors of these shapes."""
    if unknown := [change for change in changes if change.target not in portable.stored]:
        refuse(portable, unknown, "of LoKr, whose shapes follow from those of the weights in PEFT: give --base")
    both = any(A1 in change.factors for change in changes)
    weights = [portable.stored[change.target].shape for change in changes]
    sizes = {number for change in changes for number in _first(_shapes(change))}
    for factor in (_NEAR_ROOT, *sorted(sizes)):
        fields = _Fields(factor, both, any(T2 in change.factors for change in changes))
        ranks = [_rank(change, weight, fields) for change, weight in zip(changes, weights, strict=True)]
        if all(ranks):
            found = [change._replace(rank=rank or 0) for change, rank in zip(changes, ranks, strict=True)]
            return fields._asdict(), found
    return refuse(
        portable,
        changes,
        "of LoKr with factors of shapes that PEFT has none of, which it makes of one decompose_factor, of "
        "decompose_both, and of the rank: merge it into its base, and extract a LoRA",
    )


def _shapes(change: Module) -> Mapping[str, Shape]:
    return {role: ref.shape for role, ref in change.factors.items()}


def _first(shapes: Mapping[str, Shape]) -> Shape:
    """(a, c), the sizes of W₁."""
    return shapes[W1] if W1 in shapes else (shapes[A1][0], shapes[B1][1])


def _rank(change: Module, weight: Shape, fields: _Fields) -> int | None:
    """The rank for which PEFT makes factors of the shapes that these have; None where there is none."""
    own, (out, wide, *kernel) = _shapes(change), weight
    if len(weight) not in (2, 4):
        return None  # it has no LoKr of three dimensions, and turns W₁ and W₂ round where there is one
    (a, b), (c, d) = factorization(out, fields.decompose_factor), factorization(wide, fields.decompose_factor)
    ranks: Iterable[int] = {own[role][0] for role in (B1, B2) if role in own}
    least = max(b, d, *((a, c) if fields.decompose_both else ()))  # with both whole, any from half of that on
    ranks = ranks or [1 << max(math.ceil(math.log2(least / 2)), 0)]
    return next((rank for rank in ranks if _made(rank, (a, b), (c, d), kernel, fields) == own), None)


def _made(
    rank: int, rows: tuple[int, int], columns: tuple[int, int], kernel: Sequence[int], fields: _Fields
) -> Mapping[str, Shape]:
    """The factors that PEFT makes for a weight (a·b, c·d, kernel)."""
    (a, b), (c, d) = rows, columns
    low = fields.decompose_both and rank < max(a, c) / 2
    first: dict[str, Shape] = {A1: (a, rank), B1: (rank, c)} if low else {W1: (a, c)}
    if rank >= max(b, d) / 2:
        return {**first, W2: (b, d, *kernel)}
    if fields.use_effective_conv2d and kernel and tuple(kernel) != (1, 1):
        return {**first, T2: (rank, rank, *kernel), A2: (rank, b), B2: (rank, d)}
    return {**first, A2: (b, rank), B2: (rank, d * math.prod(kernel))}


def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is `dimension`, the first of them `factor` or near it; -1: near the root."""
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    most = dimension if factor == _NEAR_ROOT else factor
    m, n = 1, dimension
    while m < n:
        new = next(size for size in range(m + 1, dimension + 1) if dimension % size == 0)
        if new + dimension // new > dimension + 1 or new > most:
            break
        m, n = new, dimension // new
    return min(m, n), max(m, n)
