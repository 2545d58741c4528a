"""Judges tensors against what they should hold, by streaming: each block of both is read once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from adaptertool.arithmetic.before_after import changed, numbers
from adaptertool.arithmetic.block import Block, blocks_of, part
from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.stretch import small_of
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs import COMPUTED
from adaptertool.codecs.numbers import apart, doubles, rounded, same_bits
from adaptertool.codecs.tensors import held_as, read_stored, read_tensor
from adaptertool.engine.pool import Job
from adaptertool.errors import NonFiniteError
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import DTYPE_BITS, Ref
from adaptertool.verification.subject import Candidate, Tally
from adaptertool.verification.tolerance import RECIPES, outside

_FEW = 1 << 12  # elements that are looked at one by one
_ENOUGH = 1000  # elements of a block that nothing explains: no more are looked at, nor in later blocks
_AT_ONCE = 1 << 16  # elements that are explained at once
_TWICE = 1 << 14  # elements of a block that are made in two ways
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


def _same(subject: Candidate, source: Ref, first: int, last: int, space: Workspace) -> None:
    """Compare elements first..last of a tensor that should be a copy of another."""
    ours, theirs = source.spec.dtype, subject.dtype
    space.fit(_COPIED // 8)
    found = subject.read(first, last, space.found)
    if ours == theirs:
        expected = read_stored(subject.inputs, source, first, last, part(space.stored, held_as(ours), last - first))
        if ours in COMPUTED:
            tally = compared(expected, found, theirs)
        else:
            tally = Tally(differ=int(np.count_nonzero(expected.view(np.uint8) != found.view(np.uint8))))
    else:
        numbers = read_tensor(subject.inputs, source, first, last)
        expected = rounded(numbers, theirs)
        beyond = _beyond(numbers, expected, theirs)
        tally = compared(expected, found, theirs)
        tally.not_finite += beyond
        tally.beyond += beyond
    subject.add(first, tally)


def _beyond(numbers: Array, stored: Array, dtype: str) -> int:
    """How many numbers are finite, and infinite as they are stored."""
    return int(np.count_nonzero(np.isfinite(numbers) & ~np.isfinite(doubles(stored, dtype))))


def _judge(subject: Candidate, block: Block, terms: Chain, space: Workspace) -> None:
    """Compare a block of a tensor that is computed, and explain what differs."""
    space.fit(block.numel)
    found, own = subject.read(block.start, block.start + block.numel, space.found), subject.step.spec.dtype
    dtype = subject.dtype
    if DTYPE_BITS[dtype] > DTYPE_BITS[own] and (narrow := narrowed(found, dtype, own)) is not None:
        found, dtype = narrow, own  # stored wider than it is
    before, expected, beyond = _expected(subject, block, dtype, space)
    tally = compared(expected, found, dtype)
    tally.not_finite += beyond
    tally.beyond += beyond
    if tally.differ and not subject.is_wrong_before(block.start):
        where = np.flatnonzero(~same_bits(expected, found))
        few = where if len(where) <= _FEW else None
        _explain(tally, subject, block, before, terms, few, found, dtype)
        if not tally.outside[-1]:  # else it is wrong, whatever the differences say together
            _sum_up(tally, subject, block, before, where, expected, found, dtype)
    subject.add(block.start, tally, is_wrong=tally.outside[-1] >= _ENOUGH)


def _expected(subject: Candidate, block: Block, dtype: str, space: Workspace) -> tuple[Array, Array, int]:
    """(W, what should be stored as `dtype`, how many numbers that does not hold)"""
    own = block  # which the kernel may make in one visit, in the dtype of the base
    if dtype != subject.step.spec.dtype:
        step = subject.step._replace(spec=subject.step.spec._replace(dtype=dtype))
        own = Block(step, block.first, block.last, block.columns, block.chain)
    try:
        return *_twice(subject, own, space), 0
    except NonFiniteError:
        if dtype == subject.step.spec.dtype:
            raise
    before, _ = changed(subject.inputs, block, subject.alpha, space)  # raises where it is no matter of the dtype
    exact = numbers(block, before, subject.alpha)[1].reshape(-1)
    expected = rounded(exact, dtype)
    return before, expected, _beyond(exact, expected, dtype)


def _twice(subject: Candidate, block: Block, space: Workspace) -> tuple[Array, Array]:
    """(W, what should be stored), as `changed` has it. The merge was made by the kernel too: so some rows of a tensor's
    first block are made in passes as well, and where both differ all of the block is."""
    by_kernel = block.fused is not None or small_of(block.step) is not None
    if not by_kernel or block.first or not block.numel:
        return changed(subject.inputs, block, subject.alpha, space)
    place, passes = in_passes(subject, block, _TWICE)
    before, after = changed(subject.inputs, block, subject.alpha, space)
    if same_bits(after[place], passes).all():
        return before, after
    return changed(subject.inputs, block, subject.alpha, space, passes=True)


def in_passes(subject: Candidate, block: Block, elements: int) -> tuple[slice, Array]:
    """Where some rows in the middle of a block lie in it, about so many elements, and what should be stored of them,
    made in passes. Raises NonFiniteError."""
    count = min(block.last - block.first, max(1, elements // block.columns))
    first = block.first + (block.last - block.first - count) // 2
    some = dataclasses.replace(block, first=first, last=first + count)
    start = some.start - block.start
    made = changed(subject.inputs, some, subject.alpha, Workspace(), passes=True)[1]
    return slice(start, start + some.numel), made


def _explain(
    tally: Tally,
    subject: Candidate,
    block: Block,
    before: Array,
    terms: Chain,
    few: Array | None,
    found: Array,
    dtype: str,
) -> None:
    """Put into `tally` what rounding explains of the elements at `few`, or of all, and what it does not: part by part,
    until that is enough."""
    manner, firsts = subject.manner._replace(dtype=dtype), [0] * len(RECIPES)
    for some in [block] if few is not None else _parts(block):
        cut = slice(some.start - block.start, some.start - block.start + some.numel)
        values = subject.values(some, before[cut], terms, few)
        stored = doubles(found[cut] if few is None else found[few], dtype)
        for number, (count, place) in enumerate(zip(*outside(values, stored, manner), strict=True)):
            if count and not tally.outside[number]:
                firsts[number] = some.start + int(place if few is None else few[place])
            tally.outside[number] += count
        if tally.outside[-1] >= _ENOUGH:
            break
    tally.first_outside = max(((number, firsts[number]) for number, count in enumerate(tally.outside) if count),
                              default=(0, None))[1]  # fmt: skip


def _parts(block: Block) -> Iterator[Block]:
    """The block in parts that stay in the cache."""
    rows = max(1, _AT_ONCE // block.columns)
    for first in range(block.first, block.last, rows):
        yield dataclasses.replace(block, first=first, last=min(block.last, first + rows))


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


def compared(expected: Array, found: Array, dtype: str) -> Tally:
    """What differs."""
    off = apart(expected, found, dtype)
    return Tally(off.differ, off.distance, not_finite=off.lost, error=off.square, size=off.size)


def narrowed(stored: Array, wide: str, narrow: str) -> Array | None:
    """Numbers as the narrower dtype holds them; None where it does not hold them all."""
    numbers = doubles(stored, wide)
    bits = rounded(numbers, narrow)
    return bits if np.array_equal(doubles(bits, narrow), numbers) else None
