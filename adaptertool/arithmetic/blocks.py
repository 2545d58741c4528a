"""The arithmetic of one block: read rows of a tensor, apply the edits, round once.

The chain of all edits is evaluated in floats without rounding to the stored dtype in between, and the result is rounded
once, correctly: where the error of the floats leaves two values possible, `settle` decides. Where nothing was added to
−0.0 the base's bits stay. NaN and infinity never leave this file: they are errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptertool.arithmetic.block import Block, part
from adaptertool.arithmetic.chain import UNIT
from adaptertool.arithmetic.correct_rounding import OpenElements, Settled
from adaptertool.arithmetic.elements import every
from adaptertool.arithmetic.exact_norms import ExactRows
from adaptertool.arithmetic.fused import buffers
from adaptertool.arithmetic.not_finite import fail_not_finite
from adaptertool.arithmetic.survival import every_nth, tally_of
from adaptertool.arithmetic.verbatim import replaces
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs import BY_DTYPE, Codec
from adaptertool.codecs.numbers import doubles, largest_stored, rounded, same_bits
from adaptertool.codecs.tensors import as_bytes, read_stored
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.numerics.error_bound import Bound, has_few_bits, interpolated
from adaptertool.numerics.fused import MOST_ALPHAS
from adaptertool.numerics.lowest_bit import grain_of
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tally import Tally, sums

_MOST_SINGLE = 32  # rank up to which float32 leaves few elements open
_SAMPLE = 4096  # elements


def compute(
    inputs: Inputs,
    block: Block,
    alphas: Sequence[float],
    space: Workspace,
    *,
    exact: bool = True,
    tallies: list[Tally] | None = None,
) -> Iterator[memoryview]:
    """The bytes of before + α·(after − before) for each α, from one read of the block.

    exact: correctly rounded; else in single precision (in double where the output is single), rounded once.
    tallies: what became of the elements is added here, for each α
    A view is valid until the next is taken. Raises NonFiniteError.
    """
    base, found = block.step.base, [] if tallies is None else tallies
    space.fit(block.numel)
    stored = part(space.stored, BY_DTYPE[base.spec.dtype].held, block.numel)
    read_stored(inputs, base, block.start, block.start + block.numel, stored)
    at_once = block.fused is not None and (exact or not block.fused.only_exact)
    several = MOST_ALPHAS if at_once else len(alphas)  # so many have room
    for first in range(0, len(alphas), max(several, 1)):
        some = alphas[first : first + several]
        if (made := _at_once(block, stored, some, space) if at_once else None) is None:
            yield from _in_passes(inputs, block, stored, some, space, found, exact=exact)
            continue
        for result, tally in made:
            found.append(tally)
            yield as_bytes(result)


def _in_passes(
    inputs: Inputs,
    block: Block,
    stored: Array,
    alphas: Sequence[float],
    space: Workspace,
    tallies: list[Tally],
    *,
    exact: bool,
) -> Iterator[memoryview]:
    """The same, for all kinds: the block goes through buffers of floats."""
    base, target = block.step.base, block.step.spec.dtype
    codec = BY_DTYPE[target]
    result = part(space.rounded, codec.held, block.numel)
    run = evaluate(block, stored, alphas, space, _arithmetic(block, alphas, exact=exact), exact=exact)
    if exact and run.unit != UNIT and not all(run.size_at(alpha).is_below(2.0**126) for alpha in (1.0, *alphas)):
        run = evaluate(block, stored, alphas, space, np.float64, exact=exact)
    for alpha in alphas:
        value, size, settled = run.at(alpha), run.size_at(alpha), Settled()
        replaced = alpha == 1 and replaces(block.step)
        if exact and run.changed is run.size and base.spec.dtype == target:
            result[:] = stored
        elif not exact or size.exact or not (math.isfinite(size.error) or _all_known(value, codec)):
            codec.encode(value, 0.0, 0.0, result)
        elif len(where := _open(value, size.margin(run.unit), codec, result)):
            whole = len(where) == block.numel
            some_or_all = slice(None) if whole else where
            before = stored if whole and stored.dtype == np.float64 else doubles(stored[some_or_all], base.spec.dtype)
            values = value[some_or_all] if run.unit == UNIT else None
            some = open_elements(block, run.size, run.norms, alpha, settled, replaced=replaced)
            new = some.settle(where, before, values, result if whole else None)
            if not whole:
                result[where] = new
        if not replaced and (not exact or size.exact):
            _sign_zeros(block, stored, value, result)
        within = size.largest + size.absolute < codec.largest / 2
        if not (exact and within) and not math.isfinite(largest_stored(result, target)):
            fail_not_finite(inputs, block.step, block.start, stored, result)
        if exact and codec.rounds and not math.isfinite(size.error):
            raise NonFiniteError(
                f"{base.path}: {shown(base.spec.name)}: numbers of the adapter are so large or so small that float64 "
                "loses them on the way; the adapter is damaged, or --precision fast takes it as it comes"
            )
        tallies.append(tally_of(stored, value[:: every_nth(value.size)], result, target, base.spec.dtype, settled))
        yield as_bytes(result)


def _at_once(
    block: Block, stored: Array, alphas: Sequence[float], space: Workspace
) -> list[tuple[Array, Tally]] | None:
    """The result for each α by the kernel, with what it left open settled, and its tally; None where it cannot make
    this block."""
    if block.fused is None or not block.numel:
        return None
    room = space.rounded, space.after, space.before, space.delta, space.mix
    out = buffers(block.step.spec.dtype, len(alphas), block.numel, room)
    made = block.fused.make(stored, block.first, alphas, out)
    if made is None:
        return None
    tallies = [Tally(one.changed, 0, 0, *sums(one.kept, one.update)) for one in made]
    if any(len(one.open) for one in made):
        base = block.step.base.spec.dtype
        size, norms = Bound(largest_stored(stored, base)), {}
        if not block.chain.requirements.rational:
            before = doubles(stored, base).reshape(-1, block.columns)
            norms = dict(block.chain.apply(before.copy(), block.first, before))
        if not block.chain.size(size, block.first, block.last, norms, UNIT).is_below(2.0**1000):
            return None
        for number, (alpha, result, one) in enumerate(zip(alphas, out, made, strict=True)):
            settled, old = Settled(), stored[one.open]
            some = open_elements(block, size, norms, alpha, settled)
            new = some.settle(one.open, doubles(old, base), None) if len(one.open) else old
            again = np.count_nonzero(same_bits(result[one.open], old)) - np.count_nonzero(same_bits(new, old))
            result[one.open] = new
            counts = one.changed + int(again), settled.exactly, settled.one_by_one
            tallies[number] = Tally(*counts, *tallies[number][3:])
    return list(zip(out, tallies, strict=True))


def open_elements(
    block: Block, size: Bound, norms: Mapping[int, Array], alpha: float, settled: Settled, *, replaced: bool = False
) -> OpenElements:
    """What decides single elements of a block, with the error that they have in float64. size: of the base"""
    chain, rows = block.chain, (block.first, block.last, block.columns)
    changed = chain.size(size, block.first, block.last, norms, UNIT)
    within = changed if alpha == 1 else interpolated(size, changed, alpha, UNIT)
    return OpenElements(
        chain, ExactRows(chain), *rows, norms, size, within, alpha, replaced, block.step.spec.dtype, settled
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """A block after all edits, in arithmetic of some unit, with the bounds of its error."""

    before: Array
    after: Array
    delta: Array
    mix: Array  # a buffer
    size: Bound  # of the base
    changed: Bound
    norms: Mapping[int, Array]
    unit: float

    def at(self, alpha: float) -> Array:
        """before + α·(after − before)"""
        if alpha == 1:
            return self.after
        np.multiply(self.delta, alpha, out=self.mix)
        np.add(self.before, self.mix, out=self.mix)
        return self.mix

    def size_at(self, alpha: float) -> Bound:
        return self.changed if alpha == 1 else interpolated(self.size, self.changed, alpha, self.unit)


def evaluate(
    block: Block, stored: Array, alphas: Sequence[float], space: Workspace, arithmetic: Any, *, exact: bool
) -> _Run:
    buffers = space.before, space.after, space.delta, space.mix
    before, after, delta, mix = (part(buffer, arithmetic, block.numel) for buffer in buffers)
    mixing = any(alpha != 1 for alpha in alphas)
    size = block.chain.size_of(BY_DTYPE[block.step.base.spec.dtype].decode(stored, after))
    if mixing or block.chain.requirements.before:
        before[:] = after
    few_bits = block.chain.requirements.few_bits and BY_DTYPE[block.step.base.spec.dtype].rounds and size.exact
    if exact and arithmetic == np.float64 and few_bits and any(map(has_few_bits, alphas)):
        sample = Bound(size.largest, grain=grain_of(after[:_SAMPLE]))
        if block.chain.size(sample, block.first, block.last, {}, UNIT).exact:  # not without hope
            size = Bound(size.largest, grain=grain_of(after))
    norms = block.chain.apply(after.reshape(-1, block.columns), block.first, before.reshape(-1, block.columns))
    if mixing:
        np.subtract(after, before, out=delta)
    unit = float(np.finfo(arithmetic).eps) / 2
    changed = block.chain.size(size, block.first, block.last, norms, unit) if exact else size
    return _Run(before, after, delta, mix, size, changed, norms, unit)


def _open(value: Array, margin: tuple[float, float], codec: Codec, result: Array) -> Array:
    """The indices of what is open, the rest rounded into `result`; where float64 decides nothing all is open."""
    return codec.encode(value, *margin, result, quick=True) if codec.rounds else every(value.size)


def _all_known(value: Array, codec: Codec) -> bool:
    """Whether all elements can be settled though nothing is known of the error of float64: where it decides nothing."""
    return not codec.rounds and bool(np.isfinite(value).all())


def _arithmetic(block: Block, alphas: Sequence[float], *, exact: bool) -> Any:
    """Single precision where that is sure to leave few elements open: LoRA and DoRA on 16-bit weights."""
    narrow = all(BY_DTYPE[spec.dtype].held.itemsize <= 2 for spec in (block.step.base.spec, block.step.spec))
    plain = (
        block.chain.requirements.single and block.chain.requirements.width <= _MOST_SINGLE
    )  # the error grows with the rank
    numbers = [abs(number) for number in (*alphas, *(edit.weight for edit in block.step.edits)) if number]
    plain = plain and min(numbers, default=1) > 2.0**-60 and max(numbers, default=1) < 2.0**60  # as in_range has it
    return np.float32 if narrow and (plain or not exact) else np.float64


def _sign_zeros(block: Block, stored: Array, value: Array, result: Array) -> None:
    """Where nothing was added to a zero its sign stays; all other results that are exactly 0 are +0."""
    base, target = block.step.base.spec.dtype, block.step.spec.dtype
    where = np.union1d(_negative_zeros(stored, base), _negative_zeros(result, target))
    where = where[value[where] == 0]
    if len(where):
        before = doubles(stored[where], base)
        result[where] = rounded(np.where(before == 0, before, 0.0), target)


def _negative_zeros(stored: Array, dtype: str) -> Array:
    words = BY_DTYPE[dtype].words(stored)
    return np.flatnonzero(words == words.dtype.type(int(np.iinfo(words.dtype).max) // 2 + 1))
