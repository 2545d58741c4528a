"""What a kind of adapter is: a name, the factors that it needs, and pure functions over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """How factors change a weight.

    needs:       the roles of its factors; a module is of this kind iff it has exactly these.
    by_row:      roles whose rows go with the rows of the weight, so a block needs only its rows of them.
                 All others are read whole, once per tensor.
    expected:    shapes of the weight and of the factors -> the shapes that the factors must have,
                 or None where this kind cannot change a weight of such a shape.
    apply:       (rows, factors, scale, weight): changes float64 rows of the weight in place.
    elementwise: each element depends on the same element of the factors alone, so blocks may be cut
                 anywhere and the weight may have any number of dimensions.
    """

    name: str
    needs: frozenset[str]
    by_row: frozenset[str]
    expected: Callable[[Shape, Mapping[str, Shape]], Mapping[str, Shape] | None]
    apply: Callable[[Tensor, Mapping[str, Tensor], float, float], None]
    elementwise: bool = False
