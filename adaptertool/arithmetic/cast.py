"""A tensor that nothing edits, and that is stored as another dtype than the base has, or was stored as codes: every
number is rounded once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from adaptertool.arithmetic.not_finite import fail_not_finite
from adaptertool.arithmetic.tiling import BLOCK_ELEMENTS
from adaptertool.arithmetic.workspace import Buffers
from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles, largest_stored, rounded
from adaptertool.codecs.tensors import as_bytes, byte_of, read_as, read_stored
from adaptertool.files.reader import Inputs
from adaptertool.spec.plan import Step
from adaptertool.spec.tally import Tally

_BUFFERS = Buffers()  # of results, by dtype
_PART = 1 << 17  # elements, which stay in the cache on their way


class Cast:
    """Such a tensor, as a run makes it: in parts, each of some of its elements."""

    def __init__(self, inputs: Inputs, step: Step) -> None:
        self._inputs, self._step = inputs, step
        made, numel = step.base.made, step.base.spec.numel
        self._row = max(made.width if made is not None else 1, 1)  # of which none is decoded twice
        self._numel, self._at_once = numel, max(1, BLOCK_ELEMENTS // self._row) * self._row

    def cuts(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self._numel, self._at_once):
            yield first, min(self._numel, first + self._at_once)

    def target(self, first: int) -> int:
        """The byte where element `first` lies in the output file."""
        return byte_of(self._step.offset, self._step.spec.dtype, first)

    def compute(self, first: int, last: int, alphas: Sequence[float], tallies: list[Tally]) -> Iterator[memoryview]:
        """The bytes of elements first..last, the same for each α. Raises NonFiniteError."""
        base, dtype = self._step.base, self._step.spec.dtype
        result = _BUFFERS.take(dtype, last - first, BY_DTYPE[dtype].held)
        step = max(1, _PART // self._row) * self._row
        for begin in range(first, last, step):
            end = min(last, begin + step)
            part = result[begin - first : end - first]
            if not read_as(self._inputs, base, begin, end, part, dtype):
                stored = read_stored(self._inputs, base, begin, end)
                part[:] = rounded(stored if base.spec.dtype == "F64" else doubles(stored, base.spec.dtype), dtype)
            if not math.isfinite(largest_stored(part, dtype)):
                fail_not_finite(self._inputs, self._step, begin, read_stored(self._inputs, base, begin, end), part)
        for _alpha in alphas:
            tallies.append(Tally(changed=0))
            yield as_bytes(result)
