"""The edits of one tensor, applied in order to float64 rows of it, without rounding in between."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptertool.files.reader import Inputs
from adaptertool.kinds import BY_NAME, NORM
from adaptertool.plan import matrix
from adaptertool.spec import Edit, Ref, Step
from adaptertool.tensors import read_rows

_PASS_ELEMENTS = 1 << 19


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What an edit acts on within a block: rows and columns of the block, and which rows of its factors they are."""

    index: slice | list[int]
    columns: slice
    places: slice | list[int]


class Chain:
    """The edits of one tensor, with their factors: those needed whole are read once, by the first block that asks."""

    def __init__(self, inputs: Inputs, step: Step) -> None:
        self._inputs, self._step = inputs, step
        self._rows, self._columns = matrix(step)
        self._whole: dict[tuple[int, str], Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        self._lock = threading.RLock()

    def needs_before(self) -> bool:
        return any(edit.on_base for edit in self._step.edits)

    def apply(self, rows: Tensor, first: int, before: Tensor, upto: int | None = None) -> None:
        """Make the edits (the first `upto` of them) to float64 rows from `first` on, in place.

        before: the rows as the base has them, for the edits that take their norms from them.
        """
        self._forget(first)
        for number, edit in enumerate(self._step.edits[:upto]):
            chosen = self._choose(edit, first, first + len(rows))
            if chosen is None:
                continue
            kind, some = BY_NAME[edit.kind], rows[chosen.index, chosen.columns]
            factors = self.factors(number, edit, chosen.places)
            if kind.squares is not None:
                if edit.transposed:
                    squares = self._squares_of_columns(number, edit)
                else:
                    old = before[chosen.index, chosen.columns] if edit.on_base else some
                    squares = kind.squares(old, factors, edit.scale)
                factors[NORM] = squares.sqrt()
            kind.apply(some.T if edit.transposed else some, factors, edit.scale, edit.weight)
            if isinstance(chosen.index, list):  # else `some` shares its memory with `rows`
                rows[chosen.index] = some

    def _choose(self, edit: Edit, first: int, last: int) -> _Chosen | None:
        """What edit acts on within rows first..last of the tensor."""
        if edit.view is None:
            return _Chosen(slice(None), slice(None), slice(first, last))
        rows, columns = edit.view.rows, edit.view.columns
        cut = slice(columns.start, columns.stop, columns.step)
        if isinstance(rows, tuple):
            inside = [(place, row - first) for place, row in enumerate(rows) if first <= row < last]
            return _Chosen([row for _, row in inside], cut, [place for place, _ in inside]) if inside else None
        step = rows.step
        low, high = (min(len(rows), max(0, -((rows.start - end) // step))) for end in (first, last))
        index = slice(rows.start + low * step - first, rows.start + high * step - first, step)
        return _Chosen(index, cut, slice(low, high)) if low < high else None

    def factors(self, number: int, edit: Edit, places: slice | list[int]) -> dict[str, Tensor]:
        """All factors of edit `number` as float64 matrices, cut to those rows (as stored) of what it acts on."""
        kind = BY_NAME[edit.kind]
        if not edit.transposed and isinstance(places, slice):
            return {
                role: self._some_rows(edit, ref, places) if role in kind.by_row else self._read_whole(number, role, ref)
                for role, ref in edit.factors.items()
            }
        whole = {role: self._read_whole(number, role, ref) for role, ref in edit.factors.items()}
        if edit.transposed:
            return {role: tensor[:, places] if role in kind.by_column else tensor for role, tensor in whole.items()}
        return {role: tensor[places] if role in kind.by_row else tensor for role, tensor in whole.items()}

    def _some_rows(self, edit: Edit, ref: Ref, places: slice) -> Tensor:
        rows = self._rows if edit.view is None else len(edit.view.rows)
        return read_rows(self._inputs, ref, places.start, places.stop, ref.spec.numel // rows)

    def _read_whole(self, number: int, role: str, ref: Ref) -> Tensor:
        with self._lock:
            if (number, role) not in self._whole:
                rows = ref.spec.shape[0]
                self._whole[number, role] = read_rows(self._inputs, ref, 0, rows, ref.spec.numel // rows)
            return self._whole[number, role]

    def _forget(self, first: int) -> None:
        """Let go of what belongs to edits that end before row `first`: a tensor may hold hundreds of experts."""
        with self._lock:
            for number, role in list(self._whole):
                view = self._step.edits[number].view
                if view is not None and max(view.rows[0], view.rows[-1]) < first and isinstance(view.rows, range):
                    del self._whole[number, role]

    def _squares_of_columns(self, number: int, edit: Edit) -> Tensor:
        """‖V‖² of every stored column of a tensor that is stored transposed: one pass over all of its rows.

        In steps of fixed size, so that the sum does not depend on how the run is cut into blocks.
        """
        with self._lock:
            if number not in self._squares:
                kind_squares = BY_NAME[edit.kind].squares
                assert kind_squares is not None
                view = edit.view
                begin, end = (0, self._rows) if view is None else (view.rows[0], view.rows[-1] + 1)
                columns = self._columns if view is None else len(view.columns)
                total = torch.zeros(columns, 1, dtype=torch.float64)
                step = max(1, _PASS_ELEMENTS // self._columns)
                for first in range(begin, end, step):
                    last = min(end, first + step)
                    rows = read_rows(self._inputs, self._step.base, first, last, self._columns)
                    if not edit.on_base:
                        self.apply(rows, first, before=rows, upto=number)
                    chosen = self._choose(edit, first, last)
                    assert chosen is not None
                    some = rows[chosen.index, chosen.columns]
                    total += kind_squares(some.T, self.factors(number, edit, chosen.places), edit.scale)
                self._squares[number] = total
            return self._squares[number]
