"""Changes that a tool put on other rows of a tensor than those which they are of: of a tensor that is stored otherwise
than it is named, in other halves, or with several layers in one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import View

Edits = tuple[Edit, ...]
_PARTS = 3  # q, k, v


def in_own_halves(edits: Edits, rows: int) -> Edits:
    """The edits of a tensor of so many rows, where its halves are taken not to be swapped."""
    return tuple(
        edit if edit.view is None or not edit.view.swapped else edit._replace(view=_moved(edit.view, rows // 2))
        for edit in edits
    )


def _moved(view: View, half: int) -> View:
    first, last = view.rows[0], view.rows[-1] + 1
    off = half if first < half else -half
    return replace(view, rows=range(first + off, last + off))


def at_thirds(edits: Edits, rows: int) -> Iterator[Edits]:
    """The edits of q, k and v, which are stored in one tensor of so many rows and are not of one size, where each is
    taken to begin at a third of it: at which, is not known where not all three are changed."""
    parts = dict.fromkeys(part for edit in edits if (part := _part(edit.view, rows)) is not None)
    first = sorted(parts, key=lambda part: part.start)[:_PARTS]
    for places in itertools.combinations(range(_PARTS), len(first)):
        starts = {view: place * (rows // _PARTS) for view, place in zip(first, places, strict=True)}
        if all(start + len(view) <= rows for view, start in starts.items()):
            moved = tuple(_at(edit, starts) for edit in edits)
            if moved != edits:
                yield moved


def _part(view: View | None, rows: int) -> range | None:
    """The rows of a view that is one layer of several in a tensor; None where it is not."""
    if view is None or view.swapped or not isinstance(view.rows, range) or len(view.columns) < view.width:
        return None
    return view.rows if view.rows.step == 1 and 0 < len(view.rows) < rows else None


def _at(edit: Edit, starts: Mapping[range, int]) -> Edit:
    if edit.view is None or not isinstance(edit.view.rows, range) or edit.view.rows not in starts:
        return edit
    start = starts[edit.view.rows]
    return edit._replace(view=replace(edit.view, rows=range(start, start + len(edit.view.rows))))
