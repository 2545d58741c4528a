"""The edits of one tensor, applied in order to float64 rows of it, without rounding in between."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adaptertool.arithmetic.region import choose, numbers_of, whole
from adaptertool.arithmetic.requirements import requirements_of, shortcut_of
from adaptertool.arithmetic.tiling import matrix, needs_columns
from adaptertool.codecs.tensors import read_rows, reading_rows
from adaptertool.files.reader import Inputs
from adaptertool.kinds import NORM, PRODUCT, kind_of
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Bound, Factor
from adaptertool.numerics.ops import BLOCKS, DIGITS, DOUBLES, Ops
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Edit, Step
from adaptertool.spec.tensors import Ref

UNIT = 2.0**-53  # of float64
_PASS_ELEMENTS = 1 << 19  # elements of a tensor that a pass over all of it reads at once
_PART_ELEMENTS = 1 << 14  # the same in exact arithmetic, which takes more memory for each
_RECENT = 32  # cut factors that are kept, of all threads


class Chain:
    """The edits of one tensor, with their factors: those needed whole are read once, by the first block that asks."""

    def __init__(
        self,
        inputs: Inputs,
        step: Step,
        cut: tuple[int, int] | None = None,
        *,
        absolute: bool = False,
        through: Callable[[Array], Array] | None = None,
    ) -> None:
        """cut: rows and columns, as others have the tensor; absolute: with magnitudes of factors, scales, weights;
        through: what becomes of every factor before it is used: rounded, as by tools that convert it; or its magnitude.
        """
        if absolute:
            step = step._replace(edits=tuple(e._replace(scale=abs(e.scale), weight=abs(e.weight)) for e in step.edits))
            through = through or abs
        self.inputs, self.step, self._through = inputs, step, through
        self.rows, self.columns = cut or matrix(step)
        self.requirements = requirements_of(step.edits)
        self.transposed = any(edit.transposed for edit in step.edits)
        self.quotients = step.base.made is not None and step.base.made.over is not None  # the base: float64 rounds them
        self._whole: dict[tuple[int, str], Factor] = {}
        self._squares: dict[tuple[int, str], tuple[Any, Bound]] = {}
        self._recent: dict[tuple[int, int], tuple[slice | list[int], dict[str, Factor]]] = {}
        self._lock = threading.RLock()

    def apply(
        self,
        rows: Any,
        first: int,
        before: Any,
        upto: int | None = None,
        known: Mapping[int, Any] | None = None,
        ops: Ops = BLOCKS,
    ) -> Mapping[int, Any]:
        """Make the edits (the first `upto` of them) to rows (n, columns) from `first` on, in place: float64, float32,
        or of the number system of `ops`.

        before: the rows as the base has them, for the edits that take their norms from them.
        known: the norms, where they are not to be those of these rows.
        Returns the norms by the number of the edit, (n, 1) float64 each; of a tensor stored transposed (columns, 1). In
        double-double and long numbers not those that a kind finds `at_once`.
        """
        self.forget(first)
        norms = dict(known or {})
        for number, edit in enumerate(self.step.edits[:upto]):
            chosen = choose(edit, first, first + rows.shape[0])
            if chosen is None:
                continue
            kind, some = kind_of(edit), rows[chosen.index, chosen.columns]
            shorter = self.shorter(number, edit, chosen.places) if ops is BLOCKS else None
            factors = whole(ops, kind, shorter or self.known(number, edit, chosen.places))
            scale, weight = numbers_of(ops, edit)
            own = isinstance(chosen.index, slice) and not edit.transposed and not (edit.on_base and number)
            costly = ops is DOUBLES or ops is DIGITS
            once = kind.norms.at_once if costly and own and kind.norms is not None else None
            if once is not None and number not in norms:
                once(ops, some, factors, scale, weight)
                continue
            if number in norms:
                factors[NORM] = norms[number]
            elif kind.norms is not None:
                assert ops.root is not None
                old = before[chosen.index, chosen.columns] if edit.on_base else some
                if edit.transposed:
                    squares, _ = self._squares_of_columns(number, edit, ops)
                else:
                    squares = kind.norms.squares(ops, old, factors, scale)
                factors[NORM] = norms[number] = ops.root(squares)
            if ops is BLOCKS:
                cast = factors.keys() - kind.places
                factors |= {role: factors[role].astype(rows.dtype, copy=False) for role in cast}
            kind.apply(ops, some.T if edit.transposed else some, factors, scale, weight)
            if isinstance(chosen.index, list):  # else `some` shares its memory with `rows`
                rows[chosen.index] = some
        return norms

    def taken(self, ops: Ops, stored: Array) -> Any:
        """What the base has, in the number system of `ops`: quotients with the error of float64, if that has errors."""
        found = ops.array(stored)
        if self.quotients and ops is DOUBLES:
            found = DoubleDouble(found.parts)  # no longer known to be plain
            found.parts[2] = UNIT * abs(stored)
        return found

    def size_of(self, largest: float) -> Bound:
        """The bound of what the base has in float64."""
        return Bound(largest, 2.0**-1072, relative=UNIT) if self.quotients else Bound(largest)

    def size(
        self,
        size: Bound,
        first: int,
        last: int,
        norms: Mapping[int, Array],
        unit: float,
        *,
        upto: int | None = None,
    ) -> Bound:
        """The size of rows first..last after the edits (the first `upto` of them), in arithmetic of that unit; `size`
        where nothing changes."""
        for number, edit in enumerate(self.step.edits[:upto]):
            chosen = choose(edit, first, last)
            if chosen is None:
                continue
            known = self.shorter(number, edit, chosen.places) or self.known(number, edit, chosen.places)
            factors, length = dict(known), self.columns
            if number in norms:
                factors[NORM] = Factor(norms[number])
                if edit.transposed:
                    factors[NORM] = Factor(norms[number], self._squares_of_columns(number, edit)[1])
                    length = 32 * self.rows  # summed in parts: as if each were a row (numerics.product.roundings)
            kind = kind_of(edit)
            after = kind.bound(size, factors, edit.scale, edit.weight, unit, length)
            if after is not size:  # what lies outside of its view stays as it was
                size = size.either(after)
        return size

    def factors(self, number: int, edit: Edit, places: slice | list[int]) -> dict[str, Array]:
        """All factors of edit `number` as float64 matrices, cut to those rows (as stored) of what it acts on."""
        return {role: factor.array for role, factor in self.known(number, edit, places).items()}

    def known(self, number: int, edit: Edit, places: slice | list[int]) -> dict[str, Factor]:
        """The same, with what bounds know of them."""
        return self._last(number, places, lambda: self._cut(number, edit, places))

    def shorter(self, number: int, edit: Edit, places: slice | list[int]) -> dict[str, Factor] | None:
        """The same for blocks of floats, with the product of a pair in the place of both, if there is a shortcut."""
        shortcut, pair = shortcut_of(edit), kind_of(edit).pair
        if shortcut is None or self._through is not None or not isinstance(places, slice):
            return None

        def cut() -> dict[str, Factor]:
            product, error = shortcut.rows(reading_rows(self.inputs), places.start, places.stop, edit.transposed)
            others = edit._replace(
                factors={role: ref for role, ref in edit.factors.items() if role not in (pair or ())}
            )
            product = Factor(product.T if edit.transposed else product, Bound(0.0, error))
            return {PRODUCT: product, **self._cut(number, others, places)}

        return self._last(~number, places, cut)

    def _last(self, number: int, places: slice | list[int], cut: Callable[[], dict[str, Factor]]) -> dict[str, Factor]:
        """What `cut` returns, or has returned when this thread last asked with the number, if that was for these."""
        key = (threading.get_ident(), number)  # a block asks several times
        found = self._recent.get(key)
        if found is None or found[0] != places:
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            found = self._recent[key] = (places, cut())
        return found[1]

    def _cut(self, number: int, edit: Edit, places: slice | list[int]) -> dict[str, Factor]:
        kind = kind_of(edit)
        by_row = frozenset() if edit.transposed else kind.by_row
        cut = {}
        for role, ref in edit.factors.items():
            if role in by_row and isinstance(places, slice):
                width = ref.spec.numel // (self.rows if edit.view is None else len(edit.view.rows))
                cut[role] = Factor(self.read(ref, places.start, places.stop, width))
                continue
            cut[role] = self._read_whole(number, role, ref)
            if role in by_row:
                cut[role] = Factor(cut[role].array[places])
            elif edit.transposed and role in kind.by_column:
                cut[role] = Factor(cut[role].array[:, places])
        if self._through is None:
            return cut
        through = {role: Factor(self._through(cut[role].array)) for role in cut.keys() - kind.places}
        return cut | through

    def _read_whole(self, number: int, role: str, ref: Ref) -> Factor:
        with self._lock:
            if (number, role) not in self._whole:
                rows = ref.spec.shape[0]
                self._whole[number, role] = Factor(self.read(ref, 0, rows, math.prod(ref.spec.shape[1:])))
            return self._whole[number, role]

    def read(self, ref: Ref, first: int, last: int, width: int) -> Array:
        """Rows first..last of a factor, of `width` elements each as it is stored, float64 (last − first, width); of its
        columns if chosen."""
        return read_rows(self.inputs, ref, first, last, width)

    def forget(self, first: int) -> None:
        """Let go of what belongs to edits that end before row `first`: a tensor may hold hundreds of experts."""
        with self._lock:
            for number, role in list(self._whole):
                view = self.step.edits[number].view
                if view is not None and max(view.rows[0], view.rows[-1]) < first and isinstance(view.rows, range):
                    del self._whole[number, role]

    def _squares_of_columns(self, number: int, edit: Edit, ops: Ops = BLOCKS) -> tuple[Any, Bound]:
        """‖V‖² of every stored column of a tensor that is stored transposed, and the size of V in floats: one pass over
        all of its rows, for an error in one block is an error of the norms in all.

        In steps of fixed size, so that the sum does not depend on how the run is cut into blocks.
        """
        with self._lock:
            if (number, ops.name) not in self._squares:
                kind = kind_of(edit)
                assert kind.norms is not None
                view = edit.view
                begin, end = (0, self.rows) if view is None else (view.rows[0], view.rows[-1] + 1)
                columns = self.columns if view is None else len(view.columns)
                total, whole_size = ops.array(np.zeros((columns, 1))), Bound(0.0)
                step = max(1, (_PASS_ELEMENTS if ops is BLOCKS else _PART_ELEMENTS) // self.columns)
                step = end - begin if needs_columns(self.step.edits[:number]) else step
                for first in range(begin, end, step):
                    last = min(end, first + step)
                    stored = read_rows(self.inputs, self.step.base, first, last, self.columns)
                    rows, size = self.taken(ops, stored), self.size_of(float(abs(stored).max()))
                    if not edit.on_base:
                        rows = rows.copy()
                        norms = self.apply(rows, first, before=rows, upto=number, ops=ops)
                        size = self.size(size, first, last, norms, UNIT, upto=number) if ops is BLOCKS else size
                    chosen = choose(edit, first, last)
                    assert chosen is not None
                    some, known = rows[chosen.index, chosen.columns], self.known(number, edit, chosen.places)
                    total = total + kind.norms.squares(ops, some.T, whole(ops, kind, known), numbers_of(ops, edit)[0])
                    if ops is BLOCKS:
                        own = kind.norms.bound(size, known, edit.scale, 1.0, UNIT, self.columns)
                        whole_size = whole_size.either(own)
                total = kind.norms.joined(total, edit.factors)
                self._squares[number, ops.name] = total, whole_size
            return self._squares[number, ops.name]
