"""Which part of a block an edit acts on, and which part of its factors belongs to that."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.kinds import NORM, Kind
from adaptertool.numerics.error_bound import Factor
from adaptertool.numerics.ops import DOUBLES, RESIDUES, Ops
from adaptertool.records import dataclass
from adaptertool.spec.plan import Edit

Places = tuple[Any, Any]  # rows and columns of single elements, arrays of integers


@dataclass(frozen=True, slots=True)
class Region:
    """What an edit acts on within a block: rows and columns of the block, and which rows of its factors they are."""

    index: slice | list[int]
    columns: slice
    places: slice | list[int]

    def inside(self, at: Places) -> tuple[Any, Places]:
        """Which of the elements the edit acts on, as indices (m,), and where these are within what it acts on, (m,)
        each."""
        rows, columns = at
        if isinstance(self.index, list):
            order = np.argsort(self.index)
            found = order[np.minimum(np.searchsorted(self.index, rows, sorter=order), len(order) - 1)]
            row, in_rows = found, np.asarray(self.index)[found] == rows
        else:
            row, in_rows = _place(self.index, rows)
        column, in_columns = _place(self.columns, columns)
        where = np.flatnonzero(in_rows & in_columns)
        return where, (row[where], column[where])

    def outside(self, places: Places) -> Places:
        """The elements of the block, for places within what the edit acts on."""
        row, column = places
        first, step = self.columns.start or 0, self.columns.step or 1
        if isinstance(self.index, list):
            return np.asarray(self.index)[row], first + column * step
        return (self.index.start or 0) + row * (self.index.step or 1), first + column * step


def _place(cut: slice, numbers: Any) -> tuple[Any, Any]:
    """Positions within a slice, and whether they are in it."""
    start, step = cut.start or 0, cut.step or 1
    place = (numbers - start) // step
    within = (numbers >= start) & (start + place * step == numbers)
    return place, within if cut.stop is None else within & (numbers < cut.stop)


def picked(kind: Kind, role: str, factor: Any, edit: Edit, places: Places) -> Any:
    """What of a factor the n elements need, as a batch: an element (n, 1, 1), a row (n, 1, r), or a column (n, r, 1)
    each; or all of the factor for all, (1, ., .)."""
    row, column = places[::-1] if edit.transposed else places
    if kind.elementwise:
        return factor[row, column][:, None, None]
    if role in kind.by_row or role == NORM:
        return factor[row][:, None, :]
    return factor[:, column].T[:, :, None] if role in kind.by_column else factor[None]


def taken(ops: Ops, kind: Kind, role: str, factor: Factor, edit: Edit, places: Places) -> Any:
    """What `picked` takes of a factor, in the number system of `ops`. All of a factor is made into residues once, if
    elements share its rows or columns: there are many of them."""
    if ops is RESIDUES and not kind.elementwise and role in kind.by_row | kind.by_column:
        whole = factor.residues_by_row if role in kind.by_row else factor.residues_by_column
        return picked(kind, role, whole, edit, places)
    return ops.array(picked(kind, role, factor.array, edit, places))


def whole(ops: Ops, kind: Kind, factors: Mapping[str, Factor]) -> dict[str, Any]:
    """Factors in the number system of `ops`, or as the kind wants them. Those in double-double are made once."""
    if kind.neighbours:
        return {role: factor.array for role, factor in factors.items()}
    return {role: factor.doubled if ops is DOUBLES else ops.array(factor.array) for role, factor in factors.items()}


def choose(edit: Edit, first: int, last: int) -> Region | None:
    """What edit acts on within rows first..last of the tensor."""
    if edit.view is None:
        return Region(slice(None), slice(None), slice(first, last))
    rows, columns = edit.view.rows, edit.view.columns
    cut = slice(columns.start, columns.stop, columns.step)
    if isinstance(rows, tuple):
        inside = [(place, row - first) for place, row in enumerate(rows) if first <= row < last]
        return Region([row for _, row in inside], cut, [place for place, _ in inside]) if inside else None
    step = rows.step
    low, high = (min(len(rows), max(0, -((rows.start - end) // step))) for end in (first, last))
    index = slice(rows.start + low * step - first, rows.start + high * step - first, step)
    return Region(index, cut, slice(low, high)) if low < high else None


def numbers_of(ops: Ops, edit: Edit) -> tuple[Any, Any]:
    """The scale and the weight of an edit, as a number system takes them."""
    return (Fraction(edit.scale), Fraction(edit.weight)) if ops.exact else (edit.scale, edit.weight)
