"""The arithmetic of one block: read rows of a tensor, apply the edits in float64, round once.

The chain of all edits is evaluated in float64 without rounding to the stored dtype in between, and the result
is rounded once, correctly (`numerics.rounding`). Where nothing was added to −0.0 the base's bits stay. NaN and
infinity never leave this file: they are errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptertool.chain import Chain
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs, read_into
from adaptertool.kinds import FULL
from adaptertool.kinds.full import TUNED
from adaptertool.numerics.rounding import Rounder
from adaptertool.plan import replaces
from adaptertool.spec import Step
from adaptertool.tensors import DTYPES, as_bytes, read_tensor

_NEGATIVE_ZERO = {2: (np.uint16, 1 << 15), 4: (np.uint32, 1 << 31), 8: (np.uint64, 1 << 63)}


class Workspace:
    """The buffers of one thread, grown to the largest block and then reused."""

    def __init__(self) -> None:
        self._size = 0

    def fit(self, size: int) -> None:
        if size <= self._size:
            return
        self._size = size
        self.stored = torch.empty(size * 8, dtype=torch.uint8)
        self.rounded = torch.empty(size * 8, dtype=torch.uint8)
        self.doubles = [torch.empty(size, dtype=torch.float64) for _ in range(4)]
        self.round = Rounder(size)


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


def compute(inputs: Inputs, block: Block, alphas: Sequence[float], space: Workspace) -> Iterator[memoryview]:
    """The bytes of before + α·(after − before) for each α, from one read of the block.

    A view is valid until the next is taken. Raises NonFiniteError.
    """
    base, numel = block.step.base, block.numel
    space.fit(numel)
    stored, rounded = (
        buffer[: numel * dtype.itemsize].view(dtype)
        for buffer, dtype in ((space.stored, DTYPES[base.spec.dtype]), (space.rounded, DTYPES[block.step.spec.dtype]))
    )
    before, after, delta, mixed = (buffer[:numel] for buffer in space.doubles)
    read_into(inputs.get(base.path), block.source, as_bytes(stored))
    after.copy_(stored)
    mixing = any(alpha != 1 for alpha in alphas)
    if mixing or block.chain.needs_before():
        before.copy_(stored)
    block.chain.apply(after.view(-1, block.columns), block.first, before.view(-1, block.columns))
    if mixing:
        torch.sub(after, before, out=delta)
    for alpha in alphas:
        value = after if alpha == 1 else torch.add(before, delta, alpha=alpha, out=mixed)
        space.round(value, rounded)
        if not (alpha == 1 and replaces(block.step)):
            _keep_negative_zeros(stored, value, rounded)
        _require_finite(inputs, block, stored, rounded)
        yield as_bytes(rounded)


def _keep_negative_zeros(stored: Tensor, value: Tensor, rounded: Tensor) -> None:
    """Where nothing was added to −0.0 the sum is +0.0 in IEEE arithmetic, but the base's bits stay."""
    kind, bits = _NEGATIVE_ZERO[stored.element_size()]
    where = torch.from_numpy(np.flatnonzero(stored.view(torch.uint8).numpy().view(kind) == bits))
    if len(where):
        where = where[value[where] == 0]
        rounded[where] = stored[where]


def _require_finite(inputs: Inputs, block: Block, stored: Tensor, rounded: Tensor) -> None:
    low, high = torch.aminmax(rounded)  # both are NaN if one element is
    if math.isfinite(low) and math.isfinite(high):
        return
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
