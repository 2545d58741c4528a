"""What a tuned tensor has more than that of the base, T − W, in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import same_bits
from adaptertool.codecs.tensors import held_as, read_stored
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.numerics.difference import SUMS, subtract
from adaptertool.numerics.held import Single, narrowed
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import Ref

_ELEMENTS = 1 << 19  # elements of a block
_CACHED = 1 << 16  # elements that stay in the cache
LARGEST = 1e140  # whose square may still be added up; only float64 goes beyond


class Difference:
    """The difference T − W of two tensors as a matrix: all dimensions but the first as one. In float64, where
    differences of 16-bit numbers of about one size are exact, and others rounded once."""

    def __init__(self, inputs: Inputs, base: Ref, tuned: Ref) -> None:
        self._inputs, self._refs = inputs, (tuned, base)
        high = base.shape[0] if base.shape else 1
        self.shape = high, base.spec.numel // max(high, 1)

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """The blocks of the difference, (first row, rows), float64 (n, wide), valid until the next.

        Raises NonFiniteError, naming the tensor.
        """
        high, wide = self.shape
        step = max(1, min(high, _ELEMENTS // max(wide, 1)))
        numbers = np.empty((2, step * wide))
        dtypes = [ref.spec.dtype for ref in self._refs]
        stored = [np.empty(step * wide, held_as(dtype)) for dtype in dtypes]
        where = f"{self._refs[0].path}: {shown(self._refs[0].spec.name)}"
        for first in range(0, high, step):
            count = min(step, high - first) * wide
            for ref, bits, into in zip(self._refs, stored, numbers, strict=True):
                begin = first * wide
                read_stored(self._inputs, ref, begin, begin + count, bits[:count])
                self._decode(ref, bits[:count], into[:count])
            rows = numbers[0, :count]
            rows -= numbers[1, :count]
            if "F64" in dtypes and np.abs(rows).max() > LARGEST:
                raise NonFiniteError(f"{where} is too far from the base: the square of what was changed is no float64")
            yield first, rows.reshape(-1, wide)

    def singles(self, out: Array | None) -> Iterator[Single]:
        """The difference in float32, rounded once, as Matrix (numerics.held) has it. Raises NonFiniteError, naming the
        tensor."""
        if "F64" in (ref.spec.dtype for ref in self._refs):
            yield from narrowed(self.blocks(), out)
            return
        high, wide = self.shape
        step = max(1, min(high, _ELEMENTS // max(wide, 1)))
        numbers, sums = np.empty((2, _CACHED), np.float32), np.empty((2, SUMS))
        if out is None:
            own = np.empty((step, wide), np.float32)
        for first in range(0, high, step):
            rows = own[: high - first] if out is None else out[first : first + step]
            flat, largest, begin = rows.reshape(-1), 0.0, first * wide
            sums[:] = 0
            for start in range(0, flat.size, _CACHED):
                part = flat[start : start + _CACHED]
                tuned, base = numbers[:, : part.size]
                for ref, into in zip(self._refs, (tuned, base), strict=True):
                    stored = read_stored(self._inputs, ref, begin + start, begin + start + part.size)
                    self._decode(ref, stored, into)
                largest = max(largest, subtract(tuned, base, part, *sums))
            square, rounded = sums.sum(axis=1).tolist()
            yield Single(first, rows, square, rounded, largest)

    @staticmethod
    def _decode(ref: Ref, stored: Array, into: Array) -> None:
        if not math.isfinite(BY_DTYPE[ref.spec.dtype].decode(stored, into)):
            raise NonFiniteError(f"{ref.path}: {shown(ref.spec.name)} holds NaN or infinity, and was changed")


def differ(inputs: Inputs, one: Ref, other: Ref) -> bool:
    """Whether any number differs; −0.0 and 0.0 do not. Of equal bits NaN is equal too."""
    count = one.spec.numel
    buffers = [np.empty(min(count, _ELEMENTS), held_as(ref.spec.dtype)) for ref in (one, other)]
    for first in range(0, count, _ELEMENTS):
        parts = [bits[: min(_ELEMENTS, count - first)] for bits in buffers]
        for ref, bits in zip((one, other), parts, strict=True):
            read_stored(inputs, ref, first, first + len(bits), bits)
        if one.spec.dtype == other.spec.dtype and same_bits(*parts).all():
            continue
        numbers = np.empty((2, len(parts[0])))
        for ref, bits, into in zip((one, other), parts, numbers, strict=True):
            BY_DTYPE[ref.spec.dtype].decode(bits, into)
        if (numbers[0] != numbers[1]).any():
            return True
    return False
