"""The changes that several sources make to one tensor, combined (methods): in float64, block by block, rounded once."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.correct_rounding import Settled
from adaptertool.arithmetic.survival import every_nth, tally_of
from adaptertool.arithmetic.tiling import last_axis, matrix, rows_at_once
from adaptertool.arithmetic.together import Together
from adaptertool.arithmetic.workspace import Buffers
from adaptertool.codecs.numbers import doubles, largest_stored, rounded
from adaptertool.codecs.tensors import as_bytes, byte_of, held_as, read_stored
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.kinds import kind_of
from adaptertool.methods import METHOD_BY_NAME, Block, Place, Survey
from adaptertool.methods.method import Found
from adaptertool.numerics.lazy import DTYPES, Lazy, there
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.top_k import Band, Part, band
from adaptertool.spec.plan import Step
from adaptertool.spec.tally import Tally
from adaptertool.spec.tensors import Ref

_BASE = -1  # beside the numbers of the sources
_BUFFERS = Buffers()  # of what is read of each, and of the result
HELD = 64  # blocks of which what was found is held at once: it may be as long as a row


class Blended:
    """A tensor that several sources change. What a method needs of the whole tensor is found out before its first
    block is made."""

    def __init__(self, inputs: Inputs, step: Step) -> None:
        assert step.blend is not None
        self._inputs, self._step, self._blend = inputs, step, step.blend
        self._method = METHOD_BY_NAME[step.blend.method]
        (self._rows, self._columns), self._at_once = matrix(step), rows_at_once(step)
        # A source that does not change this tensor takes part all the same: to a mean it gives the base's.
        self._sources = {
            number: Chain(inputs, step._replace(edits=tuple(e for e in step.edits if e.adapter == of)), matrix(step))
            for number, of in enumerate(self._blend.sources or range(len(self._blend.weights)))
        }
        self._weights = list(self._blend.weights)
        self._lazy = there() and self._method.elementwise(self._blend.settings)
        self._whole = Together(self._find)

    def cuts(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self._rows, self._at_once):
            yield first, min(self._rows, first + self._at_once)

    def target(self, first: int) -> int:
        """The byte where row `first` lies in the output file."""
        return byte_of(self._step.offset, self._step.spec.dtype, first * self._columns)

    def compute(self, first: int, last: int, alphas: Sequence[float], tallies: list[Tally]) -> Iterator[memoryview]:
        """The bytes of rows first..last, the same for each α: a merge has one. Raises NonFiniteError."""
        bands, whole = self._whole.get()
        before, dtype = self._stored(_BASE, self._step.base, first, last), self._step.spec.dtype
        block = self._block(before, first, last, bands)
        made = self._method.combine(block.base, block.changes, self._weights, self._blend.settings, whole)
        # −0.0 + 0 is +0.0: where nothing was added, the base's bits stay.
        value: Any = np.where(made == block.base, block.base, made)
        every = every_nth(value.size)
        if self._lazy:
            kernel_writes = dtype if dtype in DTYPES else "F64"
            stored = _BUFFERS.take("result", value.size, held_as(kernel_writes))
            sample, largest = value.stored(stored, kernel_writes, every)
            if kernel_writes != dtype:
                stored = largest = rounded(stored, dtype)
        else:
            sample, stored = value[::every], rounded(value, dtype)
            largest = stored
        if not math.isfinite(largest_stored(largest, dtype)):
            raise NonFiniteError(
                f"{self._step.base.path}: {shown(self._step.spec.name)}: the result holds what is no number, or is "
                f"beyond the range of {dtype}"
            )
        if self._step.base.spec.dtype != dtype:
            before = rounded(doubles(before, self._step.base.spec.dtype), dtype)
        for _alpha in alphas:
            tallies.append(tally_of(before, sample, stored, dtype, dtype, Settled()))
            yield as_bytes(stored)

    def _elements(self, first: int, last: int) -> tuple[int, int]:
        return first * self._columns, last * self._columns

    def _stored(self, number: int, ref: Ref, first: int, last: int) -> Array:
        """Rows of the base, or of a tensor of its shape, flat as they are stored, until the thread reads others."""
        begin, end = self._elements(first, last)
        out = None if ref.made else _BUFFERS.take(number, end - begin, held_as(ref.spec.dtype))
        return read_stored(self._inputs, ref, begin, end, out)

    def _part(self, stored: Array, dtype: str) -> Part:
        if self._lazy and dtype in DTYPES:
            return Lazy.of(stored, dtype)
        return self._known(doubles(stored, dtype))

    def _known(self, array: Array) -> Part:
        return Lazy.of(array) if self._lazy else array

    def _change(self, number: int, stored: Array, base: Part, first: int, last: int) -> Part:
        """What a source alone makes of these rows, less what they are, which is given as stored too."""
        chain = self._sources[number]
        if not chain.step.edits:
            return base - base
        if (tuned := _replacement(chain.step)) is not None:
            return self._part(self._stored(number, tuned, first, last), tuned.spec.dtype) - base
        before, after = (
            _BUFFERS.take(use, stored.size, np.dtype(np.float64)).reshape(-1, self._columns)
            for use in ("before", ("after", number))
        )
        doubles(stored.reshape(before.shape), self._step.base.spec.dtype, before)
        after[:] = before
        chain.apply(after, first, before)
        return self._known(after.reshape(-1)) - base

    def _block(self, stored: Array, first: int, last: int, bands: Mapping[int, Band]) -> Block:
        """Rows first..last of the base, which are given as they are stored, and what stays of each change to them."""
        base = self._part(stored, self._step.base.spec.dtype)
        place = Place(self._step.spec.name, first * self._columns, base.size, last_axis(self._step))
        part, settings = first // self._at_once, self._blend.settings
        changes = [self._change(number, stored, base, first, last) for number in self._sources]
        stay = [
            self._method.thinned(change, settings, place, number, bands.get(number), part)
            for number, change in zip(self._sources, changes, strict=True)
        ]
        return Block(base, stay, changes)

    def _find(self) -> tuple[dict[int, Band], Any]:
        """Which elements stay of each change that is trimmed, and what the method wants to know of the whole tensor."""
        method, settings, bands = self._method, self._blend.settings, dict[int, Band]()
        size = self._rows * self._columns
        for number in self._sources:
            skipped, count = method.counts(settings, number, size)
            if method.trims and count < size:
                bands[number] = band(functools.partial(self._each_change, number), skipped, count)
        if method.survey is None:
            return bands, None
        each = functools.partial(self._each_block, bands)
        return bands, method.survey(Survey(each, self._weights, settings, last_axis(self._step)))

    def _each_change(self, number: int, function: Callable[[Part], Found]) -> Iterator[Found]:
        def of(cut: tuple[int, int]) -> Found:
            stored = self._stored(_BASE, self._step.base, *cut)
            return function(self._change(number, stored, self._part(stored, self._step.base.spec.dtype), *cut))

        return self._each_cut(of)

    def _each_block(self, bands: Mapping[int, Band], function: Callable[[Block], Found]) -> Iterator[Found]:
        def of(cut: tuple[int, int]) -> Found:
            return function(self._block(self._stored(_BASE, self._step.base, *cut), *cut, bands))

        return self._each_cut(of)

    def _each_cut(self, of: Callable[[tuple[int, int]], Found]) -> Iterator[Found]:
        cuts = self.cuts()
        while some := list(itertools.islice(cuts, HELD)):
            yield from self._whole.each(of, some)


def _replacement(step: Step) -> Ref | None:
    """The tensor that the edits of a step put in the place of the base's, element for element; None where they do
    something else."""
    edit, *others = step.edits
    if others or edit.view is not None or edit.transposed or edit.weight != 1 or not kind_of(edit).replaces:
        return None
    (tuned,) = edit.factors.values()
    return tuned if tuned.columns is None and tuned.spec.numel == step.base.spec.numel else None
