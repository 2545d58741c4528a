"""What a kind of adapter is: a name, the factors that it needs, and pure functions over them.

The functions are written with operators alone, so one formula serves every number system: float32 and float64 blocks
(numpy), exact residues and intervals of rationals (numerics), which settle the elements that floats leave open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adaptertool.numerics.error_bound import Array, Bound, Factor

Shape = tuple[int, ...]
NORM = "norm"


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
    squared:     as `bound`, of the numbers whose squares those are.
    elementwise: each element depends on the same element of the factors alone, so blocks may be cut
                 anywhere and the weight may have any number of dimensions.
    """

    name: str
    needs: frozenset[str]
    by_row: frozenset[str]
    expected: Callable[[Shape, Mapping[str, Shape]], Mapping[str, Shape] | None]
    apply: Callable[[Array, Mapping[str, Array], Any, Any], None]
    bound: Callable[[Bound, Mapping[str, Factor], float, float, float, int], Bound]
    by_column: frozenset[str] = frozenset()
    squares: Callable[[Array, Mapping[str, Array], Any], Array] | None = None
    squared: Callable[[Bound, Mapping[str, Factor], float, float, float, int], Bound] | None = None
    elementwise: bool = False
