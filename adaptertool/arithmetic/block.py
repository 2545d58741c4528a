"""How a tensor is cut into blocks, each of some rows of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.fused import Mixed, Products, fused_of
from adaptertool.arithmetic.fused_change import Changes
from adaptertool.arithmetic.tiling import matrix, rows_at_once
from adaptertool.codecs.tensors import byte_of
from adaptertool.files.reader import Inputs
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Step


def part(buffer: Array, dtype: Any, numel: int) -> Array:
    """The first `numel` elements of a buffer of bytes, as a flat array of that dtype: a view."""
    return buffer[: numel * np.dtype(dtype).itemsize].view(dtype)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows first..last of one tensor."""

    step: Step
    first: int
    last: int
    columns: int
    chain: Chain
    fused: Products | Mixed | Changes | None = None  # where the kernel can make it in one visit

    @property
    def start(self) -> int:
        """Elements of the tensor before this block."""
        return self.first * self.columns

    @property
    def target(self) -> int:
        """The byte where the block begins in the output file."""
        return byte_of(self.step.offset, self.step.spec.dtype, self.start)

    @property
    def numel(self) -> int:
        return (self.last - self.first) * self.columns


def blocks_of(inputs: Inputs, step: Step) -> Iterator[Block]:
    """A tensor cut into blocks."""
    chain, (rows, columns) = Chain(inputs, step), matrix(step)
    fused = fused_of(chain) or Changes.of(chain)
    at_once = rows_at_once(step)
    for first in range(0, rows, at_once):
        yield Block(step, first, min(rows, first + at_once), columns, chain, fused)
