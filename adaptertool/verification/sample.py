"""Some rows of a tensor: from all of it, and about the first element that no rounding explains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.arithmetic.block import Block
from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.tiling import needs_columns
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.tensors import read_rows, read_stored
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Edit
from adaptertool.verification.subject import Candidate
from adaptertool.verification.tolerance import limits

_ELEMENTS = 1 << 15  # of each part
_PARTS = 4  # of the tensor
_LEAST = 1 << 11  # elements of which most tell that they were not made so
_NEARLY_ALL = 0.999  # share of the elements


class Sample(NamedTuple):
    """Rows of a block, of which `bad` hold what no rounding explains: float64 matrices (rows, columns)."""

    block: Block
    bad: Array
    base: Array
    exact: Array
    found: Array
    plain: Array  # how far rounding may take an element from `exact`: in float32,
    limit: Array  # and in the narrowest recipe
    directions: Sequence[Array]  # as Subject.directions has them

    def under(self, subject: Candidate, edits: Sequence[Edit]) -> Array:
        """What other edits would have made of all rows, before it is rounded."""
        block, step = self.block, subject.step._replace(edits=tuple(edits))
        chain = Chain(subject.inputs, step, subject.cut)
        if needs_columns(edits):
            whole = read_rows(subject.inputs, step.base, 0, chain.rows, chain.columns)
            made = whole.copy()
            chain.apply(made, 0, whole)
            rows = made[block.first : block.last]
        else:
            rows = self.base.copy()
            chain.apply(rows, block.first, self.base)
        return rows if subject.alpha == 1 else self.base + subject.alpha * (rows - self.base)

    def excess(self, other: Array) -> Array:
        """By how much each element of the bad rows is farther from `other` than one rounding takes it, in roundings."""
        off, plain = abs(self.found - other)[self.bad], self.plain[self.bad]
        beyond: Array = np.maximum(off - plain, 0) / np.maximum(plain, np.finfo(float).tiny)
        return beyond

    def made(self, make: Callable[[Sample], Array]) -> Array | None:
        """What `make` makes of all rows; None where it may not be what the bad ones hold. Mostly a few rows tell."""
        if not needs_columns(self.block.step.edits):  # else a few rows take as long as all
            few = self._few()
            if not self._is_most(few._far(make(few)), _NEARLY_ALL):
                return None
        numbers = make(self)
        return numbers if self.may_be(numbers) else None

    def may_be(self, other: Array, *, most: float = _NEARLY_ALL) -> bool:
        """Whether rounding, in some recipe, leads from `other` to what the bad rows hold."""
        return self._is_most(self._far(other), most)

    def _far(self, other: Array) -> int:
        """How many elements of bad rows no rounding leads to from `other`."""
        return int(np.count_nonzero(~(abs(self.found - other)[self.bad] <= 2 * self.limit[self.bad])))

    def _is_most(self, far: int, most: float) -> bool:
        """Whether most elements of bad rows are left without so many."""
        size = len(self.bad) * self.block.columns
        return size > 0 and (size - far) / size >= most

    def _few(self) -> Sample:
        """The first bad row, and some that follow."""
        first = int(self.bad[0])
        cut = slice(first, first + max(1, _LEAST // self.block.columns))
        start = self.block.first + first
        block = dataclasses.replace(self.block, first=start, last=start + len(self.found[cut]))
        bad = self.bad[self.bad < cut.stop] - first
        base, exact, found, plain, limit = (
            array[cut] for array in (self.base, self.exact, self.found, self.plain, self.limit)
        )
        return Sample(block, bad, base, exact, found, plain, limit, [along[cut] for along in self.directions])


def all_made(samples: Sequence[Sample], make: Callable[[Sample], Array]) -> list[Array] | None:
    """What `make` makes of all samples, whose rows are bad; None where it may not be what one of them holds."""
    made = list[Array]()
    for sample in samples:
        if (numbers := sample.made(make)) is None:
            return None
        made.append(numbers)
    return made


def samples_of(subject: Candidate, elements: int = _ELEMENTS) -> Iterator[Sample]:
    """Parts of the tensor, at even distances; rows of one element each count as a part's rows all the same."""
    rows, columns = subject.cut
    if not rows * columns:
        return
    count = rows if needs_columns(subject.step.edits) else max(1, min(rows, elements // columns))
    wanted = {part * (rows - count) // (_PARTS - 1) for part in range(_PARTS)}
    if subject.tally.first_outside is not None:
        wanted.add(min(subject.tally.first_outside // columns, rows - count))
    chain, terms = Chain(subject.inputs, subject.step, subject.cut), subject.terms()
    end = 0
    for first in sorted(wanted):
        if first < end:  # a small tensor: no row twice
            if first + count <= end:
                continue
            first = min(end, rows - 1)
        last = min(rows, first + count)
        end = last
        block = Block(subject.step, first, last, columns, chain)
        before = read_stored(subject.inputs, subject.step.base, block.start, block.start + block.numel)
        values = subject.values(block, before, terms)
        found = doubles(subject.read(block.start, block.start + block.numel), subject.dtype)
        plain, *_, limit = limits(values, found, subject.manner)
        along = subject.directions(block, before)
        flat = (values.base, values.exact, found, plain, limit)
        base, exact, found, plain, limit = (array.reshape(-1, columns) for array in flat)
        bad = np.flatnonzero(~(abs(found - exact) <= limit).all(1))
        yield Sample(block, bad, base, exact, found, plain, limit, [array.reshape(-1, columns) for array in along])
