"""The arithmetic of one block: read rows of a tensor, apply the edits in float64, round once.

The chain of all edits is evaluated in float64 without rounding to the stored dtype in between, and the result
is rounded once, correctly (`numerics.rounding`). Where nothing was added to −0.0 the base's bits stay. NaN and
infinity never leave this file: they are errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from adaptertool.chain import Chain
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs, read_into
from adaptertool.kinds import FULL, LORA, Size, has_few_bits, mixed
from adaptertool.kinds.full import TUNED
from adaptertool.numerics.grain import grain_of
from adaptertool.numerics.rounding import Rounder
from adaptertool.plan import replaces
from adaptertool.settle import UNIT, Open, Settled
from adaptertool.spec import Step
from adaptertool.tensors import DTYPES, as_bytes, read_tensor

_MOST_SINGLE = 32  # rank up to which float32 leaves few elements open
_NEGATIVE_ZERO = {2: (np.uint16, 1 << 15), 4: (np.uint32, 1 << 31), 8: (np.uint64, 1 << 63)}


class Workspace:
    """The buffers of one thread, grown to the largest block and then reused."""

    def __init__(self) -> None:
        self._size = 0
        self.counts = Settled()

    def fit(self, size: int) -> None:
        if size <= self._size:
            return
        self._size = size
        self.stored = torch.empty(size * 8, dtype=torch.uint8)
        self.rounded = torch.empty(size * 8, dtype=torch.uint8)
        self.upper = torch.empty(size * 8, dtype=torch.uint8)
        self.doubles = [torch.empty(size, dtype=torch.float64) for _ in range(4)]
        self.round = Rounder(size)
        self.bits = np.empty(size, dtype=np.int16)
        self.scratch = torch.empty(size, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows first..last of one tensor."""

    step: Step
    first: int
    last: int
    columns: int
    chain: Chain

    @property
    def start(self) -> int:
        """Elements of the tensor before this block."""
        return self.first * self.columns

    @property
    def source(self) -> int:
        """Where it begins in the base file."""
        return self.step.base.offset + self.start * DTYPES[self.step.base.spec.dtype].itemsize

    @property
    def target(self) -> int:
        """Where it begins in the output file."""
        return self.step.offset + self.start * DTYPES[self.step.spec.dtype].itemsize

    @property
    def numel(self) -> int:
        return (self.last - self.first) * self.columns


def compute(
    inputs: Inputs, block: Block, alphas: Sequence[float], space: Workspace, *, exact: bool = True
) -> Iterator[memoryview]:
    """The bytes of before + α·(after − before) for each α, from one read of the block.

    exact: correctly rounded; else in single precision (in double where the output is single), rounded once.
    A view is valid until the next is taken. Raises NonFiniteError.
    """
    base, numel, first, last = block.step.base, block.numel, block.first, block.last
    space.fit(numel)
    target = DTYPES[block.step.spec.dtype]
    stored, rounded, upper = (
        buffer[: numel * dtype.itemsize].view(dtype)
        for buffer, dtype in ((space.stored, DTYPES[base.spec.dtype]), (space.rounded, target), (space.upper, target))
    )
    read_into(inputs.get(base.path), block.source, as_bytes(stored))
    run = _evaluate(block, stored, alphas, space, _arithmetic(block, alphas, exact=exact), exact=exact)
    if exact and run.unit != UNIT and not math.isfinite(run.changed.error):
        run = _evaluate(block, stored, alphas, space, torch.float64, exact=exact)
    for alpha in alphas:
        value = run.after if alpha == 1 else torch.add(run.before, run.delta, alpha=alpha, out=run.mix)
        size = run.changed if alpha == 1 else mixed(run.size, run.changed, alpha, run.unit)
        replaced = alpha == 1 and replaces(block.step)
        if exact and run.changed is run.size and stored.dtype == target:
            rounded.copy_(stored)
        elif not exact or target == torch.float64:
            rounded.copy_(value)
        elif size.error == 0 or not math.isfinite(size.error):
            space.round(value, rounded)
        elif len(where := _round(value, size, rounded, upper, space)):
            if run.unit != UNIT:
                size = block.chain.size(run.size, first, last, run.norms, UNIT)
            some = Open(block.chain, first, last, block.columns, size, alpha, replaced, target, space.counts)
            rounded[where] = some.settle(where, stored, value if run.unit == UNIT else None)
        if not replaced and (not exact or size.error == 0):
            _sign_zeros(stored, value, rounded)
        within = size.largest + size.error < torch.finfo(target).max / 2
        if not (exact and within) and not math.isfinite(_largest(rounded, space)):
            _fail_not_finite(inputs, block, stored, rounded)
        if exact and target != torch.float64 and not math.isfinite(size.error):
            raise NonFiniteError(
                f"{base.path}: {shown(base.spec.name)}: numbers of the adapter are so large or so small that float64 "
                "loses them on the way; the adapter is damaged, or --precision fast takes it as it comes"
            )
        yield as_bytes(rounded)


@dataclass(frozen=True, slots=True)
class _Run:
    """A block after all edits, in arithmetic of some unit, with the bounds of its error."""

    before: Tensor
    after: Tensor
    delta: Tensor
    mix: Tensor  # a buffer
    size: Size  # of the base
    changed: Size
    norms: Mapping[int, Tensor]
    unit: float


def _evaluate(
    block: Block, stored: Tensor, alphas: Sequence[float], space: Workspace, arithmetic: torch.dtype, *, exact: bool
) -> _Run:
    before, after, delta, mix = (buffer.view(arithmetic)[: block.numel] for buffer in space.doubles)
    after.copy_(stored)
    mixing = any(alpha != 1 for alpha in alphas)
    if mixing or block.chain.needs_before():
        before.copy_(stored)
    size = Size(_largest(stored, space))
    if arithmetic == torch.float64 and block.chain.may_be_without_error() and any(map(has_few_bits, alphas)):
        size = Size(size.largest, 0.0, grain_of(after))
    norms = block.chain.apply(after.view(-1, block.columns), block.first, before.view(-1, block.columns))
    if mixing:
        torch.sub(after, before, out=delta)
    unit = torch.finfo(arithmetic).eps / 2
    changed = block.chain.size(size, block.first, block.last, norms, unit) if exact else size
    return _Run(before, after, delta, mix, size, changed, norms, unit)


def _arithmetic(block: Block, alphas: Sequence[float], *, exact: bool) -> torch.dtype:
    """Single precision where that is sure to leave few elements open: LoRA on 16-bit weights."""
    narrow = all(DTYPES[spec.dtype].itemsize == 2 for spec in (block.step.base.spec, block.step.spec))
    plain = all(edit.kind == LORA.name for edit in block.step.edits) and all(alpha == 1 for alpha in alphas)
    plain = plain and block.chain.width() <= _MOST_SINGLE  # the error grows with the rank
    return torch.float32 if narrow and (plain or not exact) else torch.float64


def _largest(values: Tensor, space: Workspace) -> float:
    """The largest magnitude; infinity or NaN where one is not finite. Bits have the order of magnitudes."""
    if not len(values):
        return 0.0
    if values.element_size() != 2:
        low, high = torch.aminmax(values)  # both are NaN if one element is
        return max(-low.item(), high.item())
    bits = np.bitwise_and(values.view(torch.int16).numpy(), 0x7FFF, out=space.bits[: len(values)]).max()
    return torch.tensor([bits], dtype=torch.int16).view(values.dtype).item()


def _round(value: Tensor, size: Size, rounded: Tensor, upper: Tensor, space: Workspace) -> Tensor:
    """rounded = the rounding of all that lies within the error; returns the elements where that is not one value.

    Both ends of the interval are rounded. The way to 16 bits leads through float32, which may move an end by half a
    unit of float32: the interval is wider by that much, and by the rounding of the ends.
    """
    slack = torch.finfo(value.dtype).eps / 2
    if value.dtype == torch.float64 and rounded.element_size() == 2:
        slack = 2.0**-24
    slack *= 1 + 2.0**-10
    error = size.error + slack * (size.largest + size.error) + 2.0**-148
    scratch = space.scratch.view(value.dtype)[: len(value)]
    rounded.copy_(torch.sub(value, error, out=scratch))
    upper.copy_(torch.add(value, error, out=scratch))
    word = np.int16 if rounded.element_size() == 2 else np.int32
    ends = [tensor.view(torch.uint8).numpy().view(word) for tensor in (rounded, upper)]
    return torch.from_numpy(np.flatnonzero(ends[0] != ends[1]))


def _sign_zeros(stored: Tensor, value: Tensor, rounded: Tensor) -> None:
    """Where nothing was added to a zero its sign stays; all other results that are exactly 0 are +0."""
    kind, bits = _NEGATIVE_ZERO[stored.element_size()]
    kept = np.flatnonzero(stored.view(torch.uint8).numpy().view(kind) == bits)
    kind, bits = _NEGATIVE_ZERO[rounded.element_size()]
    made = np.flatnonzero(rounded.view(torch.uint8).numpy().view(kind) == bits)
    where = torch.from_numpy(np.union1d(kept, made))
    if len(where):
        where = where[value[where] == 0]
        zeros = torch.zeros(len(where), dtype=rounded.dtype)
        rounded[where] = torch.where(stored[where] == 0, stored[where].to(rounded.dtype), zeros)


def _fail_not_finite(inputs: Inputs, block: Block, stored: Tensor, rounded: Tensor) -> NoReturn:
    where = int(torch.nonzero(~torch.isfinite(rounded))[0])
    base, element = block.step.base, block.start + where
    place = shown(base.spec.name)
    if base.spec.shape:
        place += f", element {_index(element, base.spec.shape)}"
    if not torch.isfinite(stored[where]):
        raise NonFiniteError(f"{base.path}: {place} holds {stored[where].item()}; such a tensor cannot be edited")
    for edit in block.step.edits:
        if edit.kind == FULL.name and edit.view is None:
            ref = edit.factors[TUNED]
            if not torch.isfinite(number := read_tensor(inputs, ref, element, element + 1)):
                raise NonFiniteError(f"{ref.path}: {place} holds {number.item()}; it cannot be interpolated")
    if torch.isnan(rounded[where]):
        raise NonFiniteError(f"{base.path}: {place}: the result is not a number (DoRA of a weight of norm 0?)")
    largest = torch.finfo(rounded.dtype).max
    raise NonFiniteError(
        f"{base.path}: {place}: the result is beyond the range of {block.step.spec.dtype} (largest: {largest:g})"
    )


def _index(element: int, shape: Sequence[int]) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        element, position = divmod(element, size)
        index.append(position)
    return tuple(reversed(index))
