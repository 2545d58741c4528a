"""A weight that stays codes: its scales, and the code of each number that is nearest to the exact value W + Δ.

1. What nothing changes keeps its bits: a code stays where it means the nearest number already.
2. A block keeps its scale where that holds all of its numbers (codecs.quantised.lattice: reach).
3. Else it gets the smallest scale that its dtype has and that holds them.
4. Each code is the nearest to the exact value on the scale beside it; of two the even one.

Codes and scales may lie in two files: each is then made by itself, of the same numbers.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.architectures.families import family_of
from adaptertool.arithmetic.block import Block, part
from adaptertool.arithmetic.blocks import evaluate, open_elements
from adaptertool.arithmetic.chain import UNIT, Chain
from adaptertool.arithmetic.correct_rounding import Settled
from adaptertool.arithmetic.decided import Decider
from adaptertool.arithmetic.fitted import Part, coded, fate_of, held, least
from adaptertool.arithmetic.tiling import kept_rows, needs_columns
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs.quantised.lattice import Lattice
from adaptertool.codecs.quantised.least import Scales
from adaptertool.codecs.quantised.tables import looked_up
from adaptertool.codecs.tensors import as_bytes, read_stored, reading
from adaptertool.errors import NonFiniteError, UnsupportedError, shown
from adaptertool.files.reader import Inputs
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Step
from adaptertool.spec.tally import Fate, Tally, sums, total

_PART = 1 << 16  # elements, which stay in the cache on their way


class Made(NamedTuple):
    """Some rows of a weight, for one α.

    low: where the scales begin, in rows of scales
    """

    codes: Array
    low: int
    scales: Array  # as stored
    tally: Tally
    fate: Fate


class Kept:
    """Such a weight, as a run makes it."""

    def __init__(self, inputs: Inputs, step: Step, targets: Mapping[str, int], *, exact: bool) -> None:
        """targets: of the codes and of the scales, those that go to this file: their names, and their offsets"""
        assert step.keeps is not None and step.base.made is not None
        self.family = family_of(step.base.spec.name)
        self._step, self._inputs, self._exact = step, inputs, exact
        self._lattice: Lattice = step.keeps.lattice
        self._columns = step.base.made.width
        self._rows = step.base.spec.numel // self._columns
        self._chain = Chain(inputs, step, (self._rows, self._columns))
        codes, scales = step.base.made.sources[0], self._lattice.grid.ref
        self._codes, self._scales = targets.get(codes.spec.name), targets.get(scales.spec.name)
        self._bytes = codes.spec.nbytes // self._rows  # of a row
        self._read = reading(inputs)
        self._lock = threading.Lock()
        self._spans = self._lattice.grid.block[0] > kept_rows(step)  # a block is larger than what is made at once
        self._whole: dict[tuple[int, float], Array] = {}  # scales of blocks that are larger than what is made at once

    def cuts(self) -> Iterator[tuple[int, int]]:
        """Rows that are made at once."""
        if self._lattice.at_once > 1 and not needs_columns(self._step.edits):
            yield from itertools.pairwise(range(0, self._rows + 1, self._lattice.at_once))
        else:
            yield from self._parts(0, self._rows)

    def _parts(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Rows that are computed at once: whole blocks; where these are too large, rows of one of them."""
        matrix, step = self._lattice.grid.rows, kept_rows(self._step)
        size = self._lattice.grid.block[0] if self._spans else matrix
        while first < last:
            place = first % matrix
            end = last if needs_columns(self._step.edits) else first - place + min(matrix, place - place % size + size)
            end = min(last, end, first + step)
            yield first, end
            first = end

    def compute(
        self, first: int, last: int, alphas: Sequence[float], space: Workspace
    ) -> Iterator[tuple[list[tuple[int, memoryview]], Tally, Fate]]:
        """What becomes of rows first..last, for each α: bytes, and where in the file they go.

        Raises NonFiniteError, and UnsupportedError where no scale of its dtype holds the numbers of a block.
        """
        parts = [self._part(begin, end, alphas, space) for begin, end in self._parts(first, last)]
        for own in zip(*parts, strict=True):
            places = []
            if self._codes is not None:
                codes = np.concatenate([made.codes for made in own])
                step = self._lattice.at_once if self._lattice.at_once > 1 else len(codes)
                for begin in range(0, len(codes), step):
                    stored = self._lattice.stored(codes[begin : begin + step])
                    places.append((self._codes + (first + begin) * self._bytes, as_bytes(np.ascontiguousarray(stored))))
            if self._scales is not None and (new := [made for made in own if len(made.scales)]):
                places += self._places_of_scales(new)
            tallies, fates = [made.tally for made in own], [made.fate for made in own]
            yield places, total(tallies), Fate().plus(fates)

    def _places_of_scales(self, parts: Sequence[Made]) -> Iterator[tuple[int, memoryview]]:
        assert self._scales is not None
        scales, (down, across) = np.concatenate([made.scales for made in parts]), self._lattice.grid.shape
        at = self._scales + parts[0].low * across * scales.itemsize
        if self._lattice.turned:
            scales = scales.reshape(-1, down, across).transpose(0, 2, 1)
        yield at, as_bytes(np.ascontiguousarray(scales).reshape(-1))

    def _part(self, first: int, last: int, alphas: Sequence[float], space: Workspace) -> list[Made]:
        """Rows first..last, for each α."""
        low, high, index = self._lattice.blocks(first, last)
        scales = self._lattice.scales(self._read, low, high)
        sizes, divisor = self._lattice.sizes(self._read, scales)
        self._require_positive(sizes)
        codes, found = self._lattice.codes(self._read, first, last), []
        new = [self._of_all(low, alpha, space) for alpha in alphas] if self._spans else []
        for number, (_, settled, some) in enumerate(self._evaluated(first, last, alphas, space, index, divisor)):
            stored = new[number][None] if self._spans else self._fitted(some, scales, sizes)
            made, fate = codes, Fate()
            if self._codes is not None:
                made, fate = self._coded(some, (sizes, self._lattice.sizes(self._read, stored)[0]), codes)
            begins = first % self._lattice.grid.rows % self._lattice.grid.block[0] == 0
            own = slice(None) if begins else slice(0, 0)  # of a large block the first part has its scale
            changed = stored[own].view(f"u{stored.itemsize}") != scales[own].view(f"u{stored.itemsize}")
            fate = fate._replace(blocks=changed.size, rescaled=int(np.count_nonzero(changed)))
            kept = sums(fate.kept, fate.update)
            tally = Tally(fate.changed, settled.exactly, settled.one_by_one, *kept)
            found.append(Made(made, low, stored[own], tally, fate))
        return found

    def _coded(self, some: Part, sizes: tuple[Array, Array], old: Array) -> tuple[Array, Fate]:
        """The codes of all rows, some at a time, and what became of them. sizes: of the scales before, and now"""
        made, fates, step = np.empty_like(old), [], max(1, _PART // self._columns)
        for first in range(0, len(old), step):
            rows = slice(first, first + step)
            made[rows], numbers = coded(some, sizes[1], old[rows], rows)
            before = looked_up(self._lattice.table, old[rows]) * self._lattice.spread(sizes[0], some.index[rows])
            fates.append(fate_of(some, some.values[rows], (before, numbers), made[rows] != old[rows]))
        return made, Fate().plus(fates)

    def _fitted(self, some: Part, scales: Array, sizes: Array) -> Array:
        """The scales of blocks, as they are stored."""
        lost = ~held(some, sizes)
        if not lost.any():
            return scales
        stored, order = scales.copy(), self._order()
        stored[lost] = self._stored(order, least(some, order, lost))
        return stored

    def _of_all(self, low: int, alpha: float, space: Workspace) -> Array:
        """The scale of one of the blocks that are larger than what is computed at once, as it is stored: by a pass over
        all of it."""
        with self._lock:
            if (low, alpha) not in self._whole:
                scales = self._lattice.scales(self._read, low, low + 1)
                sizes, divisor = self._lattice.sizes(self._read, scales)
                order, kept = self._order(), np.ones(scales.shape, bool)
                places = np.full(scales.shape, np.iinfo(np.int64).min)
                matrix = low // self._lattice.grid.shape[0] * self._lattice.grid.rows
                begin = matrix + low % self._lattice.grid.shape[0] * self._lattice.grid.block[0]
                end = min(begin + self._lattice.grid.block[0], matrix + self._lattice.grid.rows)
                for first, last in self._parts(begin, end):
                    index = np.zeros(last - first, np.int64)
                    for _, _, some in self._evaluated(first, last, [alpha], space, index, divisor):
                        kept &= held(some, sizes)
                        own = least(some, order, np.ones(scales.shape, bool)).reshape(scales.shape)
                        places = np.maximum(places, own)
                if not kept.all():
                    scales = scales.copy()
                    scales[~kept] = self._stored(order, places[~kept])
                self._whole[low, alpha] = scales[0]
            return self._whole[low, alpha]

    def _order(self) -> Scales:
        return Scales(self._lattice, self._lattice.whole_of(self._read)[0])

    def _stored(self, order: Scales, places: Array) -> Array:
        if len(places) and int(places.max()) > order.most:
            ref = self._lattice.grid.ref
            raise UnsupportedError(
                f"{ref.path}: {shown(self._step.base.spec.name)} becomes so large that no scale of {ref.spec.dtype} "
                f"({shown(ref.spec.name)}) holds it; it is stored as a dense weight with --dtype bf16"
            )
        return order.stored(places)

    def _require_positive(self, sizes: Array) -> None:
        """Raises UnsupportedError for a scale below 0."""
        if (sizes < 0).any():
            ref = self._lattice.grid.ref
            raise UnsupportedError(
                f"{ref.path}: {shown(ref.spec.name)} holds a scale below 0; codes are not made anew for such: use "
                "--dtype bf16"
            )

    def _evaluated(
        self, first: int, last: int, alphas: Sequence[float], space: Workspace, index: Array, divisor: float
    ) -> Iterator[tuple[float, Settled, Part]]:
        """Rows after all edits, for each α. Each is valid until the next is taken. Raises NonFiniteError."""
        block = Block(self._step, first, last, self._columns, self._chain, None)
        space.fit(block.numel)
        stored = part(space.stored, np.float64, block.numel)
        read_stored(self._inputs, self._step.base, block.start, block.start + block.numel, stored)
        run = evaluate(block, stored, alphas, space, np.float64, exact=self._exact)
        for alpha in alphas:
            value, size, settled = run.at(alpha), run.size_at(alpha), Settled()
            self._require_finite(stored, value, first)
            if self._exact and not np.isfinite(size.error):
                raise NonFiniteError(
                    f"{self._step.base.path}: {shown(self._step.base.spec.name)}: numbers of the adapter are so large "
                    "or so small that float64 loses them on the way; the adapter is damaged, or --precision fast takes "
                    "it as it comes"
                )
            settles = self._exact and not size.exact
            error, relative = size.margin(UNIT) if settles else (0.0, 0.0)
            some = open_elements(block, run.size, run.norms, alpha, settled) if settles else None
            decider = Decider(some, stored, value, divisor)
            values = value.reshape(-1, self._columns)
            yield alpha, settled, Part(self._lattice, values, error, relative, index, divisor, decider)

    def _require_finite(self, stored: Array, values: Array, first: int) -> None:
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            row, column = divmod(int(bad[0]), self._columns)
            what = "what it holds" if not np.isfinite(stored[bad[0]]) else "what becomes of it"
            raise NonFiniteError(
                f"{self._step.base.path}: {shown(self._step.base.spec.name)}, row {first + row}, column {column}: "
                f"{what} is no finite number; such a weight cannot be edited"
            )
