"""What a kind of adapter is: a name, the factors that it needs, and pure functions over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

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
    apply:       (block, factors, scale, weight): changes a float64 block of the weight (out, in) in place;
                 factors as matrices, cut to the block.
    squares:     (block, factors, scale) -> the sum of squares of each row as far as the block goes. Where it is
                 given, `apply` finds the norm of each whole row among its factors, under the role NORM.
    elementwise: each element depends on the same element of the factors alone, so blocks may be cut
                 anywhere and the weight may have any number of dimensions.
    """

    name: str
    needs: frozenset[str]
    by_row: frozenset[str]
    expected: Callable[[Shape, Mapping[str, Shape]], Mapping[str, Shape] | None]
    apply: Callable[[Tensor, Mapping[str, Tensor], float, float], None]
    by_column: frozenset[str] = frozenset()
    squares: Callable[[Tensor, Mapping[str, Tensor], float], Tensor] | None = None
    elementwise: bool = False
