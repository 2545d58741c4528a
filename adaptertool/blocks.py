"""The arithmetic of one block: read rows of a tensor, apply the edits in float64, round once.

The chain of all edits is evaluated in float64 without rounding to the stored dtype in between, and the result
is rounded once, correctly (`numerics.rounding`). Where nothing was added to −0.0 the base's bits stay. NaN and
infinity never leave this file: they are errors.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs, read_into
from adaptertool.kinds import BY_NAME, FULL, NORM
from adaptertool.kinds.full import TUNED
from adaptertool.numerics.rounding import Rounder
from adaptertool.plan import matrix, replaces
from adaptertool.spec import Edit, Ref, Step

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_PASS_ELEMENTS = 1 << 19
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


class Chain:
    """The edits of one tensor, with their factors: those needed whole are read once, by the first block that asks."""

    def __init__(self, inputs: Inputs, step: Step) -> None:
        self._inputs, self._step = inputs, step
        self._rows, self._columns = matrix(step)
        self._whole: dict[tuple[int, str], Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        self._lock = threading.RLock()

    def needs_before(self) -> bool:
        return any(edit.on_base for edit in self._step.edits)

    def apply(self, rows: Tensor, first: int, before: Tensor, upto: int | None = None) -> None:
        """Make the edits (the first `upto` of them) to float64 rows from `first` on, in place.

        before: the rows as the base has them, for the edits that take their norms from them.
        """
        for number, edit in enumerate(self._step.edits[:upto]):
            kind = BY_NAME[edit.kind]
            if edit.rows is not None:
                self._apply_to_rows(number, edit, rows, first)
                continue
            factors = self._factors(number, edit, first, first + len(rows))
            if kind.squares is not None:
                if edit.transposed:
                    squares = self._squares_of_columns(number, edit)
                else:
                    squares = kind.squares(before if edit.on_base else rows, factors, edit.scale)
                factors[NORM] = squares.sqrt()
            kind.apply(rows.T if edit.transposed else rows, factors, edit.scale, edit.weight)

    def _apply_to_rows(self, number: int, edit: Edit, rows: Tensor, first: int) -> None:
        """An edit that acts on single rows: those of them that lie in this block."""
        assert edit.rows is not None
        inside = [(place, row - first) for place, row in enumerate(edit.rows) if first <= row < first + len(rows)]
        if inside:
            places, chosen = (list(numbers) for numbers in zip(*inside, strict=True))
            some = rows[chosen]
            factors = {role: self._read_whole(number, role, ref)[places] for role, ref in edit.factors.items()}
            BY_NAME[edit.kind].apply(some, factors, edit.scale, edit.weight)
            rows[chosen] = some

    def _factors(self, number: int, edit: Edit, first: int, last: int) -> dict[str, Tensor]:
        """All factors of edit `number` as float64 matrices, cut to rows first..last of the stored tensor."""
        kind = BY_NAME[edit.kind]
        if not edit.transposed:
            return {
                role: self._some_rows(ref, first, last) if role in kind.by_row else self._read_whole(number, role, ref)
                for role, ref in edit.factors.items()
            }
        whole = {role: self._read_whole(number, role, ref) for role, ref in edit.factors.items()}
        return {role: tensor[:, first:last] if role in kind.by_column else tensor for role, tensor in whole.items()}

    def _some_rows(self, ref: Ref, first: int, last: int) -> Tensor:
        columns = ref.spec.numel // self._rows
        return read_tensor(self._inputs, ref, first * columns, last * columns).view(last - first, columns)

    def _read_whole(self, number: int, role: str, ref: Ref) -> Tensor:
        with self._lock:
            if (number, role) not in self._whole:
                tensor = read_tensor(self._inputs, ref, 0, ref.spec.numel)
                self._whole[number, role] = tensor.view(ref.spec.shape[0], -1)
            return self._whole[number, role]

    def _squares_of_columns(self, number: int, edit: Edit) -> Tensor:
        """‖V‖² of every stored column of a tensor that is stored transposed: one pass over all of its rows.

        In steps of fixed size, so that the sum does not depend on how the run is cut into blocks.
        """
        with self._lock:
            if number not in self._squares:
                kind_squares = BY_NAME[edit.kind].squares
                assert kind_squares is not None
                total = torch.zeros(self._columns, 1, dtype=torch.float64)
                step = max(1, _PASS_ELEMENTS // self._columns)
                for first in range(0, self._rows, step):
                    last = min(self._rows, first + step)
                    begin, end = first * self._columns, last * self._columns
                    rows = read_tensor(self._inputs, self._step.base, begin, end).view(-1, self._columns)
                    if not edit.on_base:
                        self.apply(rows, first, before=rows, upto=number)
                    total += kind_squares(rows.T, self._factors(number, edit, first, last), edit.scale)
                self._squares[number] = total
            return self._squares[number]


def read_tensor(inputs: Inputs, ref: Ref, first: int, last: int) -> Tensor:
    """Elements first..last of a tensor on disk, flat, as float64 (exact for every dtype computed on)."""
    stored = torch.empty(last - first, dtype=DTYPES[ref.spec.dtype])
    size = stored.element_size()
    read_into(inputs.get(ref.path), ref.offset + first * size, as_bytes(stored))
    return stored.to(torch.float64)


def as_bytes(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data


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
    def offset(self) -> int:
        """Where it begins in the file, base and output alike."""
        return self.step.base.offset + self.start * DTYPES[self.step.base.spec.dtype].itemsize

    @property
    def numel(self) -> int:
        return (self.last - self.first) * self.columns


def compute(inputs: Inputs, block: Block, alphas: Sequence[float], space: Workspace) -> Iterator[memoryview]:
    """The bytes of before + α·(after − before) for each α, from one read of the block.

    A view is valid until the next is taken. Raises NonFiniteError.
    """
    base, numel = block.step.base, block.numel
    dtype = DTYPES[base.spec.dtype]
    space.fit(numel)
    stored = space.stored[: numel * dtype.itemsize].view(dtype)
    rounded = space.rounded[: numel * dtype.itemsize].view(dtype)
    before, after, delta, mixed = (buffer[:numel] for buffer in space.doubles)
    read_into(inputs.get(base.path), block.offset, as_bytes(stored))
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
        if edit.kind == FULL.name and edit.rows is None:
            ref = edit.factors[TUNED]
            if not torch.isfinite(number := read_tensor(inputs, ref, element, element + 1)):
                raise NonFiniteError(f"{ref.path}: {place} holds {number.item()}; it cannot be interpolated")
    if torch.isnan(rounded[where]):
        raise NonFiniteError(f"{base.path}: {place}: the result is not a number (DoRA of a weight of norm 0?)")
    largest = torch.finfo(rounded.dtype).max
    raise NonFiniteError(
        f"{base.path}: {place}: the result is beyond the range of {base.spec.dtype} (largest: {largest:g})"
    )


def _index(element: int, shape: Sequence[int]) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        element, position = divmod(element, size)
        index.append(position)
    return tuple(reversed(index))
