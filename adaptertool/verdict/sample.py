"""Some rows of a tensor that is wrong: the first wrong ones, and some from all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.blocks import Block
from adaptertool.chain import Chain
from adaptertool.numerics.rounding import STORED, Array, doubles
from adaptertool.plan import matrix
from adaptertool.spec import Edit
from adaptertool.tensors import as_bytes
from adaptertool.verdict.judge import Subject
from adaptertool.verdict.likeness import limits

_ELEMENTS = 1 << 16  # of each part
_PARTS = 4


class Sample(NamedTuple):
    """Rows first..last, of which `bad` are wrong: float64 matrices of these only."""

    block: Block
    bad: Array  # from `first` on
    base: Array
    exact: Array
    found: Array
    limit: Array  # how far rounding may take an element from `exact`

    def under(self, subject: Subject, edits: Sequence[Edit]) -> Array:
        """What other edits would have made of these rows, before it is rounded."""
        block, step = self.block, subject.step._replace(edits=tuple(edits))
        rows = doubles(_stored(subject, block), step.base.spec.dtype).reshape(-1, block.columns)
        after = rows.copy()
        Chain(subject.inputs, step, matrix(subject.step)).apply(after, block.first, rows)
        mixed: Array = (after if subject.alpha == 1 else rows + subject.alpha * (after - rows))[self.bad]
        return mixed

    def nearer(self, other: Array, *, slack: float = 0.0, most: float = 0.999) -> bool:
        """Whether what is stored is `other`, rounded, and is much nearer to that than to what it should be."""
        off = abs(self.found - other)
        within = np.mean(off <= 2 * self.limit + slack * abs(other - self.base))
        return bool(within >= most and off.mean() < abs(self.found - self.exact).mean() / 2)


def samples_of(subject: Subject) -> Iterator[Sample]:
    rows, columns = matrix(subject.step)
    if not rows * columns:
        return
    count = max(1, min(rows, _ELEMENTS // columns))
    wanted = {part * (rows - count) // (_PARTS - 1) for part in range(_PARTS)}
    if subject.tally.first_outside is not None:
        wanted.add(min(subject.tally.first_outside // columns, rows - count))
    chain, terms = (Chain(subject.inputs, subject.step, absolute=absolute) for absolute in (False, True))
    for first in sorted(wanted):
        block = Block(subject.step, first, first + count, columns, chain)
        values = subject.values(block, _stored(subject, block), terms)
        found = doubles(subject.read(block.start, block.start + block.numel), subject.dtype)
        limit = limits(values, found, subject.manner)[-1]
        shaped = [array.reshape(count, columns) for array in (values.base, values.exact, found, limit)]
        bad = np.flatnonzero((abs(shaped[2] - shaped[1]) > shaped[3]).any(1))
        if len(bad):
            yield Sample(block, bad, *(array[bad] for array in shaped))


def _stored(subject: Subject, block: Block) -> Array:
    base = subject.step.base
    stored = np.empty(block.numel, STORED[base.spec.dtype])
    subject.inputs.read_into(base.path, block.source, as_bytes(stored))
    return stored


def fitted(samples: Sequence[Sample]) -> tuple[float, float]:
    """(c, its standard error) of the least squares C − W ≈ c·Δ: 1 where the change is there as it should be."""
    moved = np.concatenate([(sample.found - sample.base).ravel() for sample in samples])
    change = np.concatenate([(sample.exact - sample.base).ravel() for sample in samples])
    square = float(change @ change)
    if not square > 0:
        return 0.0, math.inf
    scale = float(moved @ change) / square
    rest = moved - scale * change
    return scale, math.sqrt(float(rest @ rest) / max(len(rest) - 1, 1) / square)
