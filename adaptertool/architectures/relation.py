"""How a tensor of a model of diffusers, or of transformers, lies in the checkpoint of the model's original repository,
and what one of both is called in the spelling of the other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from adaptertool.architectures.conversion import Part, Piece, Pieces


class Relation(NamedTuple):
    """One tensor in both spellings. It is `part` of that of the original; None: all of it, as it is."""

    ours: str  # of diffusers or transformers
    original: str
    part: Part | None = None


def aliases(names: Collection[str], relations: Iterable[Relation]) -> Mapping[str, set[Pieces]]:
    """What the tensors of a checkpoint of these names are called in the other spelling."""
    found: dict[str, set[Pieces]] = {}
    parts: dict[str, list[Relation]] = {}
    for relation in relations:
        if relation.original in names:
            found.setdefault(relation.ours, set()).add((Piece(relation.original, cut=relation.part),))
        elif relation.part is None or relation.part.whole:
            if relation.ours in names:
                found.setdefault(relation.original, set()).add((Piece(relation.ours, cut=relation.part),))
        else:
            parts.setdefault(relation.original, []).append(relation)
    for original, some in parts.items():
        rows = sorted((one.part.index, one.part.end, one.part.count, one.ours) for one in some if one.part)
        begins, ends = [first for first, *_ in rows], [end for _, end, *_ in rows]
        if begins == [0, *ends[:-1]] and ends[-1] == rows[0][2] and all(ours in names for *_, ours in rows):
            pieces = tuple(Piece(ours, part, len(rows)) for part, (*_, ours) in enumerate(rows))
            found.setdefault(original, set()).add(pieces)
    return found
