"""The changes that several sources make to one tensor, combined (methods): in float64, block by block, rounded once."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.correct_rounding import Settled
from adaptertool.arithmetic.survival import tally_of
from adaptertool.arithmetic.tiling import matrix, rows_at_once
from adaptertool.codecs.numbers import largest_stored, rounded
from adaptertool.codecs.tensors import as_bytes, byte_of, read_rows
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.methods import METHOD_BY_NAME, Place, Sums
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.top_k import Largest, largest
from adaptertool.spec.plan import Step
from adaptertool.spec.tally import Tally


class Blended:
    """A tensor that several sources change. What a method needs of the whole tensor is found out by the first block."""

    def __init__(self, inputs: Inputs, step: Step) -> None:
        assert step.blend is not None
        self._inputs, self._step, self._blend = inputs, step, step.blend
        self._method = METHOD_BY_NAME[step.blend.method]
        (self._rows, self._columns), self._at_once = matrix(step), rows_at_once(step)
        # A source that does not change this tensor takes part all the same: in TIES it has no vote.
        adapters = sorted({edit.adapter for edit in step.edits})
        self._sources = {
            number: Chain(
                inputs, step._replace(edits=tuple(e for e in step.edits if e.adapter == number)), matrix(step)
            )
            for number in adapters
        }
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
            bounds = self._bounds if method.trims else {}
            sums = self._sums if method.spans else None
        base = self._base(first, last)
        place = Place(self._step.spec.name, first * self._columns, base.size)
        changes = []
        for number in self._sources:
            change, part = self._change(number, base, first), first // self._at_once
            changes.append(method.thinned(change, settings, place, number, bounds.get(number), part))
        weights = [self._blend.weights[number] for number in self._sources]
        dtype = self._step.spec.dtype
        value = method.combine(base, changes, weights, settings, sums)
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

    @functools.cached_property
    def _bounds(self) -> dict[int, Largest]:
        count = int(self._method.share(self._blend.settings) * self._rows * self._columns)
        return {number: largest(functools.partial(self._changes, number), count) for number in self._sources}

    def _changes(self, number: int) -> Iterator[Array]:
        for cut in self.cuts():
            yield self._change(number, self._base(*cut), cut[0])

    @functools.cached_property
    def _sums(self) -> Sums:
        """‖W‖², ‖T‖² and ⟨W, T⟩, in parts of fixed size and in order."""
        total = np.zeros(3)
        (number,) = self._sources
        for cut in self.cuts():
            base = self._base(*cut)
            tuned = base + self._change(number, base, cut[0])
            total += (base * base).sum(), (tuned * tuned).sum(), (base * tuned).sum()
        return Sums(*total.tolist())
