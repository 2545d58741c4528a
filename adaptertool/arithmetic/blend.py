"""The changes that several sources make to one tensor, combined (methods): in float64, block by block, rounded once."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.correct_rounding import Settled
from adaptertool.arithmetic.survival import tally_of
from adaptertool.arithmetic.tiling import last_axis, matrix, rows_at_once
from adaptertool.codecs.numbers import largest_stored, rounded
from adaptertool.codecs.tensors import as_bytes, byte_of, read_rows
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.methods import METHOD_BY_NAME, Block, Place, Survey
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.top_k import Band, band
from adaptertool.spec.plan import Step
from adaptertool.spec.tally import Tally


class Blended:
    """A tensor that several sources change. What a method needs of the whole tensor is found out by the first block."""

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
        self._lock = threading.Lock()

    def cuts(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self._rows, self._at_once):
            yield first, min(self._rows, first + self._at_once)

    def target(self, first: int) -> int:
        """The byte where row `first` lies in the output file."""
        return byte_of(self._step.offset, self._step.spec.dtype, first * self._columns)

    def compute(self, first: int, last: int, alphas: Sequence[float], tallies: list[Tally]) -> Iterator[memoryview]:
        """The bytes of rows first..last, the same for each α: a merge has one. Raises NonFiniteError."""
        method, settings = self._method, self._blend.settings
        with self._lock:
            bands, whole = self._bands, self._whole
        base, changes, _ = self._block(first, last, bands)
        dtype = self._step.spec.dtype
        value: Array = method.combine(base, changes, self._weights, settings, whole)
        # −0.0 + 0 is +0.0: where nothing was added, the base's bits stay.
        stored = rounded(np.where(value == base, base, value), dtype)
        if not math.isfinite(largest_stored(stored, dtype)):
            raise NonFiniteError(
                f"{self._step.base.path}: {shown(self._step.spec.name)}: the result holds what is no number, or is "
                f"beyond the range of {dtype}"
            )
        for _alpha in alphas:
            tallies.append(tally_of(rounded(base, dtype), value, stored, dtype, dtype, Settled()))
            yield as_bytes(stored)

    def _base(self, first: int, last: int) -> Array:
        return read_rows(self._inputs, self._step.base, first, last, self._columns).reshape(-1)

    def _change(self, number: int, base: Array, first: int) -> Array:
        """What a source alone makes of these rows, less what they are."""
        before = base.reshape(-1, self._columns)
        after = before.copy()
        self._sources[number].apply(after, first, before)
        after -= before
        return after.reshape(-1)

    def _block(self, first: int, last: int, bands: Mapping[int, Band]) -> Block:
        """Rows first..last of the base, and what stays of each change to them."""
        base = self._base(first, last)
        place = Place(self._step.spec.name, first * self._columns, base.size, last_axis(self._step))
        part, settings = first // self._at_once, self._blend.settings
        changes = [self._change(number, base, first) for number in self._sources]
        stay = [
            self._method.thinned(change, settings, place, number, bands.get(number), part)
            for number, change in zip(self._sources, changes, strict=True)
        ]
        return Block(base, stay, changes)

    @functools.cached_property
    def _bands(self) -> dict[int, Band]:
        """Which elements stay of each change that is trimmed."""
        size, found = self._rows * self._columns, dict[int, Band]()
        for number in self._sources:
            skipped, count = self._method.counts(self._blend.settings, number, size)
            if self._method.trims and count < size:
                found[number] = band(functools.partial(self._changes, number), skipped, count)
        return found

    def _changes(self, number: int) -> Iterator[Array]:
        for cut in self.cuts():
            yield self._change(number, self._base(*cut), cut[0])

    @functools.cached_property
    def _whole(self) -> Any:
        """What the method wants to know of the whole tensor."""
        if self._method.survey is None:
            return None
        return self._method.survey(Survey(self._blocks, self._weights, self._blend.settings, last_axis(self._step)))

    def _blocks(self) -> Iterator[Block]:
        for cut in self.cuts():
            yield self._block(*cut, self._bands)
