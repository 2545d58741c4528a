"""Judges tensors against what they should hold, by streaming: each block of both is read once."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from adaptertool.blocks import Block, Workspace, blocks_of
from adaptertool.chain import Chain
from adaptertool.changes import changed
from adaptertool.files.reader import Inputs
from adaptertool.kinds import BY_NAME
from adaptertool.numerics.distance import ulps
from adaptertool.numerics.rounding import STORED, WORD, Array, doubles, rounded
from adaptertool.plan import verbatim
from adaptertool.region import as_floats
from adaptertool.spec import COMPUTED, DTYPE_BITS, Ref, Step
from adaptertool.tensors import as_bytes
from adaptertool.verdict.likeness import RECIPES, ROUNDOFF, Manner, Values, limits
from adaptertool.workers import Job

EXACT, ROUNDING, WRONG, CHANGED = "exact", "rounding", "wrong", "untouched_changed"

_FEW = 1 << 12  # elements that are looked at one by one
_ENOUGH = 1000  # elements that nothing explains: no more are looked at
_CACHED = 1 << 15  # elements that are compared at once
_COPIED = 1 << 22  # bytes of an untouched tensor that are compared at once
_SHIFT = 2.0  # units of roundoff by which a whole change may be scaled by rounding
_DEVIATIONS = 6.0


@dataclass(slots=True)
class Tally:
    """What was found of a tensor, by several threads."""

    differ: int = 0  # elements that are not stored as they should be
    apart: int = 0  # largest distance, in representable numbers
    not_finite: int = 0  # where a number should be
    error: float = 0.0  # ‖C − E‖², of what is stored and what should be
    size: float = 0.0  # ‖E‖²
    outside: list[int] = field(default_factory=lambda: [0] * len(RECIPES))  # elements that a recipe does not explain
    first_outside: int | None = None
    # Of blocks in which many differ:
    moved: float = 0.0  # ⟨Δ, Δ⟩
    kept: float = 0.0  # ⟨E − W, Δ⟩
    shift: float = 0.0  # ⟨C − E, Δ⟩
    spread: float = 0.0  # Σ (C − E)²·Δ²

    def add(self, other: Tally) -> None:
        for name in ("differ", "not_finite", "error", "size", "moved", "kept", "shift", "spread"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.apart = max(self.apart, other.apart)
        self.outside = [one + two for one, two in zip(self.outside, other.outside, strict=True)]
        places = [place for place in (self.first_outside, other.first_outside) if place is not None]
        self.first_outside = min(places, default=None)

    def recipe(self, roundoff: float) -> str | None:
        """The first that explains all differences; None where none does."""
        found = next((number for number, count in enumerate(self.outside) if not count), None)
        if self.not_finite or found is None or (found and self._scaled(roundoff)):
            return None
        return RECIPES[found]

    def _scaled(self, roundoff: float) -> bool:
        """Whether the change as a whole is larger or smaller than rounding can make it: the exact merge may lose a
        part of what is smaller than its numbers can tell, and other recipes lose less of it."""
        slack = _SHIFT * roundoff * self.moved + _DEVIATIONS * math.sqrt(self.spread)
        least, most = sorted((self.kept, self.moved))
        return not least - slack <= self.kept + self.shift <= most + slack


class Subject:
    """One tensor of the candidate, with what it should hold: `step` at `alpha`."""

    def __init__(self, step: Step, alpha: float, candidate: Ref, inputs: Inputs) -> None:
        self.step, self.alpha, self.candidate, self.inputs = step, alpha, candidate, inputs
        self.tally, self._lock = Tally(), threading.RLock()
        self.source = verbatim(step, alpha)  # the bytes that it should have, where nothing is computed

    @property
    def name(self) -> str:
        return self.step.spec.name

    @property
    def dtype(self) -> str:
        """As the candidate stores it."""
        return self.candidate.spec.dtype

    @functools.cached_property
    def manner(self) -> Manner:
        edits = self.step.edits
        refs = [ref for edit in edits for ref in edit.factors.values()]
        dtypes = {self.dtype, self.step.spec.dtype, *(ref.spec.dtype for ref in refs)}
        squares = any(BY_NAME[edit.kind].squares is not None for edit in edits)
        return Manner(
            self.dtype,
            max(ROUNDOFF[dtype] for dtype in dtypes if dtype in ROUNDOFF),
            sum(min(ref.spec.shape, default=1) for ref in refs),
            max(1, len({edit.adapter for edit in edits})),
            4.0 if squares else 1.5 if self.alpha not in (0, 1) else 0.0,
        )

    def verdict(self) -> tuple[str, str | None]:
        """(status, recipe)."""
        if not self.tally.differ:
            return EXACT, None
        if self.source is not None:
            return CHANGED if self.source is self.step.base else WRONG, None
        recipe = self.tally.recipe(self.manner.roundoff)
        return (WRONG, None) if recipe is None else (ROUNDING, recipe)

    def read(self, first: int, last: int) -> Array:
        """Elements first..last of the candidate, as stored."""
        stored = np.empty(last - first, STORED[self.dtype])
        ref = self.candidate
        self.inputs.read_into(ref.path, ref.offset + first * stored.itemsize, as_bytes(stored))
        return stored

    def add(self, tally: Tally) -> None:
        with self._lock:
            self.tally.add(tally)

    def values(self, block: Block, before: Array, terms: Chain, where: Array | None = None) -> Values:
        """Of elements of a block, or of all. terms: the chain of magnitudes."""
        chain, alpha = block.chain, self.alpha
        turns = any(BY_NAME[edit.kind].squares is not None for edit in self.step.edits)
        if where is not None and not turns:
            base = doubles(before[where], self.step.base.spec.dtype)
            at, span = (where // block.columns, where % block.columns), (block.first, block.last)
            full, most = (
                one.pick(as_floats, *span, at, numbers[:, None, None]).ravel()
                for one, numbers in ((chain, base), (terms, abs(base)))
            )
        else:
            rows = doubles(before, self.step.base.spec.dtype).reshape(-1, block.columns)
            after, sizes = rows.copy(), abs(rows)
            norms = chain.apply(after, block.first, rows)
            terms.apply(sizes, block.first, abs(rows), known=norms)
            chosen = slice(None) if where is None else where
            base, full, most = (array.reshape(-1)[chosen] for array in (rows, after, sizes))
        most = np.maximum(most, abs(full))
        if alpha == 1:
            return Values(base, full, most)
        return Values(base, base + alpha * (full - base), abs(1 - alpha) * abs(base) + abs(alpha) * most)


def jobs_of(subject: Subject) -> Iterator[Job]:
    if subject.source is not None:
        size = max(1, _COPIED * 8 // DTYPE_BITS[subject.dtype])
        whole = subject.candidate.spec.numel
        for first in range(0, whole, size):
            yield functools.partial(_same, subject, subject.source, first, min(whole, first + size))
    else:
        terms = Chain(subject.inputs, subject.step, absolute=True)
        for block in blocks_of(subject.inputs, subject.step):
            yield functools.partial(_judge, subject, block, terms)


def _same(subject: Subject, source: Ref, first: int, last: int, _: Workspace) -> None:
    """Of a tensor that is a copy of another."""
    ours, theirs = source.spec.dtype, subject.dtype
    if ours == theirs:
        begin, end = (place * DTYPE_BITS[ours] // 8 for place in (first, last))
        expected, found = (np.empty(end - begin, np.uint8) for _ in range(2))
        for ref, bits in ((source, expected), (subject.candidate, found)):
            subject.inputs.read_into(ref.path, ref.offset + begin, bits.data)
        if ours not in COMPUTED or np.array_equal(expected, found):
            subject.add(Tally(differ=int(np.count_nonzero(expected != found))))
            return
        expected, found = expected.view(STORED[ours]), found.view(STORED[ours])
    else:
        stored = np.empty(last - first, STORED[ours])
        subject.inputs.read_into(source.path, source.offset + first * stored.itemsize, as_bytes(stored))
        expected, found = rounded(doubles(stored, ours), theirs), subject.read(first, last)
    subject.add(compared(expected, found, theirs)[0])


def _judge(subject: Subject, block: Block, terms: Chain, space: Workspace) -> None:
    """Of a block that is computed."""
    found, own = subject.read(block.start, block.start + block.numel), subject.step.spec.dtype
    dtype = subject.dtype
    if DTYPE_BITS[dtype] > DTYPE_BITS[own] and (narrow := narrowed(found, dtype, own)) is not None:
        found, dtype = narrow, own  # stored wider than it is
    step = subject.step._replace(spec=subject.step.spec._replace(dtype=dtype))
    before, expected = changed(
        subject.inputs, Block(step, block.first, block.last, block.columns, block.chain), subject.alpha, space
    )
    tally, where = compared(expected, found, dtype)
    if len(where) and subject.tally.outside[-1] < _ENOUGH:
        few = where if len(where) <= _FEW else None
        values = subject.values(block, before, terms, few)
        _explain(tally, values, block, few, expected, found, subject.manner._replace(dtype=dtype))
    subject.add(tally)


def _explain(
    tally: Tally, values: Values, block: Block, where: Array | None, expected: Array, found: Array, manner: Manner
) -> None:
    """Put into `tally` what rounding explains of the elements at `where`, or of all, and what it does not."""
    if where is not None:
        expected, found = expected[where], found[where]
    stored = doubles(found, manner.dtype)
    for number, limit in enumerate(limits(values, stored, manner)):
        outside = np.flatnonzero(~(abs(stored - values.exact) <= limit))
        tally.outside[number] = len(outside)
        if len(outside):
            place = outside[0] if where is None else where[outside[0]]
            tally.first_outside = block.start + int(place)
    if where is None:
        right = doubles(expected, manner.dtype)
        moved, off = values.exact - values.base, stored - right
        tally.moved, tally.kept = float(moved @ moved), float((right - values.base) @ moved)
        tally.shift, tally.spread = float(off @ moved), float((off * off) @ (moved * moved))


def compared(expected: Array, found: Array, dtype: str) -> tuple[Tally, Array]:
    """What differs, and where."""
    word, tally, places = WORD[dtype], Tally(), []
    for first in range(0, len(expected), _CACHED):
        right, stored = expected[first : first + _CACHED], found[first : first + _CACHED]
        numbers = doubles(right, dtype)
        tally.size += float(numbers @ numbers)
        where = np.flatnonzero(right.view(word) != stored.view(word))
        if not len(where):
            continue
        if 2 * len(where) < len(right):
            right, stored, numbers = right[where], stored[where], numbers[where]
        off = doubles(stored, dtype) - numbers
        if not (finite := np.isfinite(off)).all():
            tally.not_finite += int(np.count_nonzero(~finite & np.isfinite(numbers)))
            off[~finite] = 0
        tally.differ += len(where)
        tally.apart = max(tally.apart, int(ulps(right, stored, dtype).max()))
        tally.error += float(off @ off)
        places.append(where + first)
    return tally, np.concatenate(places) if places else np.empty(0, np.int64)


def narrowed(stored: Array, wide: str, narrow: str) -> Array | None:
    """Numbers as the narrower dtype holds them; None where it does not hold them all."""
    numbers = doubles(stored, wide)
    bits = rounded(numbers, narrow)
    return bits if np.array_equal(doubles(bits, narrow), numbers) else None
