"""Rotations whose blocks are made of stored factors, and numbers of such blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from adaptertool.kinds.kind import Part
from adaptertool.kinds.made import made
from adaptertool.kinds.rotation import HIGH, LOW, ORDER, ROTATION
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

# (how to read, first block, last block) -> these, (n, b, b), of all stages one after the other
Blocks = Callable[[ReadRows, int, int], DoubleDouble]


def rotation(
    sources: Iterable[Ref],
    shape: tuple[int, int, int],
    blocks: Blocks,
    order: Array | None = None,
    *,
    turned: bool,
    finite: bool = False,
) -> Part:
    """The rotation of such blocks.

    shape: stages M, columns of what is rotated, and b; order: (M, columns) as kinds.rotation has it; None: as they
    stand; turned: of the transpose of the weight; finite: blocks are, as spec.tensors.Making has it
    """
    (stages, columns, wide), some = shape, tuple(sources)
    orders = np.tile(np.arange(columns), (stages, 1)) if order is None else order
    halves, size = Halves(lambda read, begin, end: blocks(read, begin, end).parts[:2]), (stages * columns, wide)

    def half(which: int) -> Callable[[ReadRows, int, int], Array]:
        def rows(read: ReadRows, first: int, last: int) -> Array:
            begin, end = first // wide, -(-last // wide)
            found = halves.take(read, begin, end, which)
            return found.reshape(-1, wide)[first - begin * wide : last - begin * wide]

        return rows

    factors = {
        HIGH: made(some, size, half(0), finite=finite),
        LOW: made(some, size, half(1), finite=finite),
        ORDER: made(some, (stages, columns), lambda read, first, last: orders[first:last]),  # noqa: ARG005
    }
    return Part(ROTATION.name, factors, 1.0, turned=turned)


class Halves:
    """Two factors that are made together, and asked for one after the other: what was not asked for is kept until it
    is."""

    def __init__(self, both: Callable[[ReadRows, int, int], Array]) -> None:
        self._both = both
        self._kept: dict[tuple[int, int, int], Array] = {}

    def take(self, read: ReadRows, first: int, last: int, which: int) -> Array:
        """Rows first..last of the one or the other, as `both` makes them."""
        found = self._kept.pop((first, last, which), None)
        if found is None:
            both = self._both(read, first, last)
            found, self._kept = both[which], {(first, last, 1 - which): both[1 - which]}
        return found


def skew(packed: Array, wide: int) -> DoubleDouble:
    """Blocks (n, b, b) with Qᵀ = −Q, of the n·(b·(b − 1)/2) numbers above their diagonals, row after row."""
    blocks = np.zeros((len(packed), wide, wide))
    above = np.triu_indices(wide, 1)
    blocks[:, above[0], above[1]] = packed
    return DoubleDouble.of(blocks - blocks.transpose(0, 2, 1))


def negative(blocks: DoubleDouble) -> DoubleDouble:
    return DoubleDouble(blocks.parts * np.array([-1.0, -1.0, 1.0]).reshape(3, 1, 1, 1), plain=blocks.plain)


def stored_blocks(read: ReadRows, ref: Ref, first: int, last: int) -> Array:
    """Blocks first..last, (n, b, b), of a tensor (blocks, b, b) or (stages, blocks, b, b): of all stages one after the
    other."""
    *stages, count, wide, _ = ref.shape
    begin, end = (first // count, -(-last // count)) if stages else (first, last)
    found = read(ref, begin, end).reshape(-1, wide, wide)
    return found[first - begin * count : last - begin * count] if stages else found
