"""What single elements need whole rows for, exactly: the norms by which DoRA divides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.region import choose
from adaptertool.codecs.tensors import exact_quotients, read_rows
from adaptertool.errors import UnsupportedError, argument, shown
from adaptertool.kinds import NORM, Kind, kind_of
from adaptertool.numerics.dyadic import Dyadic
from adaptertool.numerics.interval import Interval, intervals, roots
from adaptertool.numerics.ops import DYADICS, INTERVALS
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Edit

_FEW = 4  # that are kept
_MOST = 1 << 17  # elements of a tensor of which all are made


class ExactRows:
    """The rows of a tensor, or the columns of one that is stored transposed, with the edits that `chain` makes to them,
    in exact arithmetic. The last are kept, for the next element of the same."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._made: dict[tuple[Any, ...], Any] = {}

    def norms_of_base(self, row: int, column: int, bits: int) -> Mapping[int, Any] | None:
        """The norms that an element needs, by the number of the edit, (1, 1, 1) arrays of Interval, to about `bits`
        bits; None where they are not those of the base and one change, but of what other edits made before, or the
        element cannot be made alone all the same."""
        key = ("norms", column if self._chain.transposed else row, bits)
        norms: Mapping[int, Any] | None = self._kept(key, lambda: self._norms_of_base(row, column, bits))
        return norms

    def _norms_of_base(self, row: int, column: int, bits: int) -> Mapping[int, Any] | None:
        norms, turned = {}, self._chain.transposed
        if self._chain.requirements.whole_rows or self._chain.quotients:
            return None
        first, last = (0, self._chain.rows) if turned else (row, row + 1)
        for number, edit in enumerate(self._chain.step.edits):
            kind, chosen = kind_of(edit), choose(edit, first, last)
            if kind.norms is None or chosen is None:
                continue
            if turned and not edit.transposed:
                return None
            columns = range(self._chain.columns)[chosen.columns]
            if (number and not edit.on_base) or (turned and column not in columns):
                return None
            cut, square = self._chain.factors(number, edit, chosen.places), Fraction()
            for place in together(edit, columns.index(column)) if turned else (0,):
                old = self._stored(row, columns[place] if turned else column, turned=turned)[chosen.index]
                own = _cut_to(cut, kind, place) if turned else cut
                old = old.T if turned else old[:, chosen.columns]
                factors = {role: Dyadic.of(tensor) for role, tensor in own.items()}
                square += kind.norms.squares(DYADICS, Dyadic.of(old), factors, Fraction(edit.scale)).item()
            norms[number] = np.full((1, 1, 1), Interval.of(square).sqrt(bits))
        return norms

    def line(self, row: int, column: int, bits: int) -> tuple[Interval, Interval]:
        """(before, after) of one element, where norms of whole rows play a part: that row, or the column of a tensor
        that is stored transposed, in intervals; roots to about `bits` bits. All of the tensor, where some edits need
        whole rows of it and others whole columns; raises UnsupportedError where that is too large."""
        if self._crossed:
            before, rows = self._kept(("all", bits), lambda: self._all(bits))
            return before[row, column], rows[row, column]
        key = ("line", column if self._chain.transposed else row, bits)
        before, rows = self._kept(key, lambda: self._made_of(row, column, bits, None))
        at = (row, 0) if self._chain.transposed else (0, column)
        return before[at], rows[at]

    @property
    def _crossed(self) -> bool:
        """Whether a column does not do, though some edits need one."""
        edits = self._chain.step.edits
        rows = (
            kind for kind in (kind_of(edit) for edit in edits if not edit.transposed) if kind.norms or kind.neighbours
        )
        return self._chain.transposed and any(rows)

    def _all(self, bits: int) -> tuple[Any, Any]:
        """All of the base, and of it after the edits."""
        chain, count = self._chain, self._chain.rows
        if count * chain.columns > _MOST:
            raise UnsupportedError(
                f"{shown(chain.step.spec.name)}: an element needs exact arithmetic, with adapters that need whole "
                f"rows and whole columns; merge one, then the other, or take it with {argument('precision')} fast"
            )
        before = np.concatenate([intervals(self._stored(row, 0, turned=False)) for row in range(count)])
        rows = before.copy()
        for number, edit in enumerate(chain.step.edits):
            chosen = choose(edit, 0, count)
            if chosen is None:
                continue
            kind, cut = kind_of(edit), chain.factors(number, edit, chosen.places)
            factors = cut if kind.neighbours else {role: intervals(tensor) for role, tensor in cut.items()}
            at = chosen.index, chosen.columns
            some, old = (array[at].T if edit.transposed else array[at] for array in (rows, before))
            scale, weight = Fraction(edit.scale), Fraction(edit.weight)
            if kind.norms is not None:
                squares = kind.norms.squares(INTERVALS, old if edit.on_base else some, factors, scale)
                factors[NORM] = roots(kind.norms.joined(squares, cut), bits)
            kind.apply(INTERVALS, some, factors, scale, weight)
            if isinstance(chosen.index, list):
                rows[at] = some.T if edit.transposed else some
        return before, rows

    def _kept(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            made = make()
            if len(self._made) >= _FEW:
                self._made.clear()
            self._made[key] = made
        return self._made[key]

    def _made_of(self, row: int, column: int, bits: int, upto: int | None) -> tuple[Any, Any]:
        """The line of the base, and after the first `upto` edits."""
        turned = self._chain.transposed
        first, last = (0, self._chain.rows) if turned else (row, row + 1)
        rows = intervals(self._stored(row, column, turned=turned))
        before = rows.copy()
        for number, edit in enumerate(self._chain.step.edits[:upto]):
            chosen = choose(edit, first, last)
            if chosen is None:
                continue
            whole = cut = self._chain.factors(number, edit, chosen.places)
            columns = range(self._chain.columns)[chosen.columns]
            kind, index = kind_of(edit), (chosen.index, chosen.columns)
            if turned:
                if column not in columns:
                    continue
                cut = _cut_to(cut, kind, columns.index(column), turned=edit.transposed)
                index = (chosen.index, slice(0, 1))
            factors = cut if kind.neighbours else {role: intervals(tensor) for role, tensor in cut.items()}
            some, old = (array[index].T if edit.transposed else array[index] for array in (rows, before))
            scale, weight = Fraction(edit.scale), Fraction(edit.weight)
            if kind.norms is not None:
                squares = kind.norms.squares(INTERVALS, old if edit.on_base else some, factors, scale)
                place = columns.index(column) if turned else 0
                for other in [one for one in together(edit, place) if one != place]:
                    states = self._made_of(row, columns[other], bits, number)
                    beside = {role: intervals(tensor) for role, tensor in _cut_to(whole, kind, other).items()}
                    line = states[0 if edit.on_base else 1][index].T
                    squares = squares + kind.norms.squares(INTERVALS, line, beside, scale)
                factors[NORM] = roots(squares, bits)
            kind.apply(INTERVALS, some, factors, scale, weight)
            if isinstance(chosen.index, list):
                rows[index] = some.T if edit.transposed else some
        return before, rows

    def _stored(self, row: int, column: int, *, turned: bool) -> Any:
        """A row of the base (1, columns), or a column (rows, 1) of a tensor that is stored transposed."""
        if self._chain.quotients:
            return self._quotients(row, column, turned=turned)
        if not turned:
            return read_rows(self._chain.inputs, self._chain.step.base, row, row + 1, self._chain.columns)
        base, shape = self._chain.step.base, (self._chain.rows, self._chain.columns)
        column_only = base._replace(spec=base.spec._replace(shape=shape), columns=range(column, column + 1))
        return read_rows(self._chain.inputs, column_only, 0, *shape)

    def _quotients(self, row: int, column: int, *, turned: bool) -> Any:
        """The same, as rationals."""
        chain, width = self._chain, self._chain.columns
        if not turned:
            return exact_quotients(chain.inputs, chain.step.base, row * width, (row + 1) * width)[None]
        places = (place * width + column for place in range(chain.rows))
        return np.array([exact_quotients(chain.inputs, chain.step.base, at, at + 1) for at in places])


def together(edit: Edit, row: int) -> range:
    """The rows of what an edit acts on that have one norm, of which `row` is one."""
    norms = kind_of(edit).norms
    every = 1 if norms is None or norms.together is None else edit.factors[norms.together].shape[0]
    return range(row // every * every, (row // every + 1) * every)


def _cut_to(factors: Mapping[str, Array], kind: Kind, column: int, *, turned: bool = True) -> dict[str, Array]:
    """Cut to what belongs to one column of a tensor: where that is stored transposed (`turned`) to one output row."""
    part = slice(column, column + 1)
    if kind.elementwise:  # as the tensor itself is stored
        return {role: factor[:, part] for role, factor in factors.items()}
    if not turned:
        return {role: factor[:, part] if role in kind.by_column else factor for role, factor in factors.items()}
    return {role: factor[part] if role in kind.by_row else factor for role, factor in factors.items()}
