"""What a kind of adapter is: a name, the factors that it needs, and pure functions over them.

The functions are written with operators alone, so one formula serves every number system: float32 and float64 blocks
(torch), exact residues and intervals of rationals (numerics), which settle the elements that floats leave open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
NORM = "norm"
_MOST_BITS = 24  # of a factor; products with more are rounded anyhow
Array = Any  # a torch tensor, numerics.residue.Residue, or a numpy array of numerics.interval.Interval


@dataclass(frozen=True, slots=True)
class Size:
    """Of the numbers of a block: none is larger than `largest`, none further than `error` from the exact value.

    grain: all are multiples of 2^grain; None where that is not known. Multiples of it that are smaller than
    2^(grain + 53) are computed without any error in float64.
    """

    largest: float
    error: float = 0.0
    grain: int | None = None

    def then(self, largest: float, error: float, grain: int | None) -> Size:
        """After a step in which nothing exceeds `largest`, with this error unless float64 makes none."""
        known = grain is not None and grain > -1000 and self.error == 0
        if known and grain is not None and largest < math.ldexp(1.0, min(grain + 53, 1000)):
            return Size(largest, 0.0, grain)
        return Size(largest, error + 2.0**-1072)

    def grain_with(self, factor: Array, *numbers: float, power: int = 0) -> int | None:
        """Of v + factor·numbers·2^power: None where it is not known, or of no use because a number has many bits."""
        if self.grain is None:
            return None
        from adaptertool.numerics.grain import grain_of  # noqa: PLC0415  # plans are made without torch

        return grain_times(grain_of(factor) + power, self.grain, *numbers)


@dataclass(frozen=True, slots=True)
class Kind:
    """How factors change a weight.

    needs:       the roles of its factors; all must be there
    by_row:      roles whose rows go with the output rows of the weight
    by_column:   roles whose columns go with the input columns of the weight
                 A block of a weight (out, in) is made of rows, and needs only those rows of the factors that go
                 by row. Of a weight that is stored transposed, a block is made of columns.
    expected:    shapes of the weight (out, in, ...) and of the factors -> the shapes that the factors must have,
                 or None where this kind cannot change a weight of such a shape.
    apply:       (block, factors, scale, weight): changes a block of the weight (out, in) in place; factors as
                 matrices, cut to the block. Or a batch of single elements (n, 1, 1), with factors to match.
    bound:       (size, factors, scale, weight, unit, length) -> the size after `apply`, in arithmetic whose roundings
                 are each of at most `unit`, relatively; `length` elements make a row of the weight. The very `size`
                 that it was given where `apply` changes nothing at all.
    squares:     (block, factors, scale) -> the sum of squares of each row as far as the block goes. Where it is
                 given, `apply` finds the norm of each whole row among its factors, under the role NORM.
    elementwise: each element depends on the same element of the factors alone, so blocks may be cut
                 anywhere and the weight may have any number of dimensions.
    """

    name: str
    needs: frozenset[str]
    by_row: frozenset[str]
    expected: Callable[[Shape, Mapping[str, Shape]], Mapping[str, Shape] | None]
    apply: Callable[[Array, Mapping[str, Array], Any, Any], None]
    bound: Callable[[Size, Mapping[str, Array], float, float, float, int], Size]
    by_column: frozenset[str] = frozenset()
    squares: Callable[[Array, Mapping[str, Array], Any], Array] | None = None
    elementwise: bool = False


def largest_of(array: Array) -> float:
    return float(abs(array).max()) if array.numel() else 0.0


def extent(array: Array) -> tuple[float, float]:
    """The smallest magnitude but 0, or 1 where that is smaller, and the largest."""
    if not array.numel():
        return 1.0, 0.0
    sizes = abs(array)
    largest = float(sizes.max())
    return float(sizes.masked_fill_(sizes == 0, 1.0).min()), largest


def in_range(extents: Iterable[tuple[float, float]], unit: float) -> bool:
    """Whether numbers are far from where arithmetic of that unit, float32 or float64, under- or overflows, also in a
    product of two."""
    limit = 60 if unit > 2.0**-30 else 500
    return all(smallest > 2.0**-limit and largest < 2.0**limit for smallest, largest in extents)


def tiny(unit: float) -> float:
    """More than what underflow takes away from a result."""
    return 2.0**-147 if unit > 2.0**-30 else 2.0**-1072


def has_few_bits(number: float) -> bool:
    return abs(number.as_integer_ratio()[0]).bit_length() <= _MOST_BITS


def grain_times(grain: int, own: int, *numbers: float) -> int | None:
    """Of v + x·numbers, for v of grain `own` and x of `grain`."""
    for number in numbers:
        if not has_few_bits(number):
            return None
        grain -= number.as_integer_ratio()[1].bit_length() - 1
    return min(grain, own)


def mixed(size: Size, other: Size, weight: float, unit: float) -> Size:
    """Of v + weight·(x − v), for v of `size` and x of size `other`."""
    apart = size.largest + other.largest
    largest = size.largest + max(abs(weight), 1) * apart
    inherited = (1 + abs(weight)) * size.error + abs(weight) * other.error
    grain = None
    if size.grain is not None and other.grain is not None and other.error == 0:
        grain = grain_times(min(size.grain, other.grain), size.grain, weight)
    return size.then(largest, inherited + unit * (3 * abs(weight) * apart + largest), grain)
