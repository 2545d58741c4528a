"""Judges tensors against what they should hold, by streaming: each block of both is read once."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from adaptertool.arithmetic.before_after import changed, numbers
from adaptertool.arithmetic.blocks import Block, blocks_of
from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs import BY_DTYPE, COMPUTED
from adaptertool.codecs.numbers import doubles, rounded, same_bits
from adaptertool.codecs.tensors import held_as, read_stored, read_tensor
from adaptertool.engine.pool import Job
from adaptertool.errors import NonFiniteError
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.ulps import ulps
from adaptertool.spec.tensors import DTYPE_BITS, Ref
from adaptertool.verification.subject import Candidate, Tally
from adaptertool.verification.tolerance import Manner, Values, limits

_FEW = 1 << 12  # elements that are looked at one by one
_ENOUGH = 1000  # elements that nothing explains: no more are looked at
_CACHED = 1 << 15  # elements that are compared at once
_COPIED = 1 << 22  # bytes of an untouched tensor that are compared at once


def jobs_of(subject: Candidate) -> Iterator[Job]:
    if subject.source is not None:
        item = held_as(subject.dtype).itemsize
        size, whole = _COPIED // item, subject.candidate.spec.nbytes // item
        for first in range(0, whole, size):
            yield functools.partial(_same, subject, subject.source, first, min(whole, first + size))
    else:
        terms = subject.terms()
        for block in blocks_of(subject.inputs, subject.step):
            yield functools.partial(_judge, subject, block, terms)


def _same(subject: Candidate, source: Ref, first: int, last: int, _: Workspace) -> None:
    """Compare elements first..last of a tensor that should be a copy of another."""
    ours, theirs = source.spec.dtype, subject.dtype
    if ours == theirs:
        expected, found = read_stored(subject.inputs, source, first, last), subject.read(first, last)
        if ours not in COMPUTED or same_bits(expected, found).all():
            subject.add(Tally(differ=int(np.count_nonzero(expected.view(np.uint8) != found.view(np.uint8)))))
            return
    else:
        numbers = read_tensor(subject.inputs, source, first, last)
        expected, found = rounded(numbers, theirs), subject.read(first, last)
        beyond = _beyond(numbers, expected, theirs)
        subject.add(Tally(not_finite=beyond, beyond=beyond))
    subject.add(compared(expected, found, theirs)[0])


def _beyond(numbers: Array, stored: Array, dtype: str) -> int:
    """How many numbers are finite, and infinite as they are stored."""
    return int(np.count_nonzero(np.isfinite(numbers) & ~np.isfinite(doubles(stored, dtype))))


def _judge(subject: Candidate, block: Block, terms: Chain, space: Workspace) -> None:
    """Compare a block of a tensor that is computed, and explain what differs."""
    found, own = subject.read(block.start, block.start + block.numel), subject.step.spec.dtype
    dtype = subject.dtype
    if DTYPE_BITS[dtype] > DTYPE_BITS[own] and (narrow := narrowed(found, dtype, own)) is not None:
        found, dtype = narrow, own  # stored wider than it is
    before, expected, beyond = _expected(subject, block, dtype, space)
    tally, where = compared(expected, found, dtype)
    tally.not_finite += beyond
    tally.beyond += beyond
    if len(where) and subject.tally.outside[-1] < _ENOUGH:
        few = where if len(where) <= _FEW else None
        values = subject.values(block, before, terms, few)
        _explain(tally, values, block, few, found, subject.manner._replace(dtype=dtype))
        if not tally.outside[-1]:  # else it is wrong, whatever the differences say together
            _sum_up(tally, subject, block, before, where, expected, found, dtype)
    subject.add(tally)


def _expected(subject: Candidate, block: Block, dtype: str, space: Workspace) -> tuple[Array, Array, int]:
    """(W, what should be stored as `dtype`, how many numbers that does not hold)"""
    step = subject.step._replace(spec=subject.step.spec._replace(dtype=dtype))
    own = Block(step, block.first, block.last, block.columns, block.chain)
    try:
        return *changed(subject.inputs, own, subject.alpha, space), 0
    except NonFiniteError:
        if dtype == subject.step.spec.dtype:
            raise
    before, _ = changed(subject.inputs, block, subject.alpha, space)  # raises where it is no matter of the dtype
    exact = numbers(block, before, subject.alpha)[1].reshape(-1)
    expected = rounded(exact, dtype)
    return before, expected, _beyond(exact, expected, dtype)


def _explain(tally: Tally, values: Values, block: Block, where: Array | None, found: Array, manner: Manner) -> None:
    """Put into `tally` what rounding explains of the elements at `where`, or of all, and what it does not."""
    stored = doubles(found if where is None else found[where], manner.dtype)
    for number, limit in enumerate(limits(values, stored, manner)):
        outside = np.flatnonzero(~(abs(stored - values.exact) <= limit))
        tally.outside[number] = len(outside)
        if len(outside):
            place = outside[0] if where is None else where[outside[0]]
            tally.first_outside = block.start + int(place)


def _sum_up(
    tally: Tally,
    subject: Candidate,
    block: Block,
    before: Array,
    where: Array,
    expected: Array,
    found: Array,
    dtype: str,
) -> None:
    """Put into `tally` where the differences at `where` lead, as if each were independent of the others."""
    right = doubles(expected[where], dtype)
    off = np.nan_to_num(doubles(found[where], dtype) - right, nan=0.0, posinf=0.0, neginf=0.0)
    terms = [off * along for along in subject.directions(block, before, where)]
    terms.append(np.sign(off) * np.sign(right))
    tally.shift = np.array([term.sum() for term in terms])
    tally.spread = np.array([term @ term for term in terms])


def compared(expected: Array, found: Array, dtype: str) -> tuple[Tally, Array]:
    """What differs, and where."""
    words, tally, places = BY_DTYPE[dtype].words, Tally(), []
    for first in range(0, len(expected), _CACHED):
        right, stored = expected[first : first + _CACHED], found[first : first + _CACHED]
        numbers = doubles(right, dtype)
        tally.size += float(numbers @ numbers)
        where = np.flatnonzero(~same_bits(right, stored))
        if not len(where):
            continue
        if 2 * len(where) < len(right):
            right, stored, numbers = right[where], stored[where], numbers[where]
        off = doubles(stored, dtype) - numbers
        if not (finite := np.isfinite(off)).all():
            tally.not_finite += int(np.count_nonzero(~finite & np.isfinite(numbers)))
            off[~finite] = 0
        tally.differ += len(where)
        tally.apart = max(tally.apart, int(ulps(words(right), words(stored)).max()))
        tally.error += float(off @ off)
        places.append(where + first)
    return tally, np.concatenate(places) if places else np.empty(0, np.int64)


def narrowed(stored: Array, wide: str, narrow: str) -> Array | None:
    """Numbers as the narrower dtype holds them; None where it does not hold them all."""
    numbers = doubles(stored, wide)
    bits = rounded(numbers, narrow)
    return bits if np.array_equal(doubles(bits, narrow), numbers) else None
