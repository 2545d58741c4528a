"""What a way of combining changes is: pure functions over a block of the base and of each source's change to it.

Arithmetic is float64, in an order that is fixed, and the result is rounded once: the same bytes on every machine, and
for any threads and blocks; not settled where float64 leaves two values possible, as a plain merge is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Array = Any  # of numpy


class Place(NamedTuple):
    """Where a block lies, which is all that chance may depend on."""

    tensor: str
    first: int  # element
    size: int  # elements
    seed: int


@dataclass(frozen=True, slots=True)
class Method:
    """How changes are combined.

    prune:   (change, density, place, source) -> the change with a part of its elements 0, where chance says which
    trims:   whether all but the elements of largest magnitude, a share of `density` of each tensor, are 0
    combine: (base, changes, weights) -> the result; flat float64 arrays
    spans:   whether `combine` needs sums over the whole tensor: it is then given
             (base, changes, weights, ‖W‖², ‖T‖², ⟨W, T⟩)
    dense:   whether it has no density
    only:    how many sources it takes, where that is fixed
    """

    name: str
    combine: Callable[..., Array]
    prune: Callable[[Array, float, Place, int], Array] | None = None
    trims: bool = False
    spans: bool = False
    dense: bool = False
    only: int | None = None

    def thinned(self, change: Array, density: float, place: Place, source: int, largest: Any, part: int) -> Array:
        """What stays of a block of a change. largest: of the whole change (numerics.top_k), if the method trims; part:
        the number of this block there."""
        if self.trims:
            change = change * largest.mask(change, part)
        return change if self.prune is None else self.prune(change, density, place, source)


def weighted_sum(base: Array, changes: Sequence[Array], weights: Sequence[float]) -> Array:
    """W + Σ w_i·δ_i, in order."""
    result = base.copy()
    for change, weight in zip(changes, weights, strict=True):
        result += weight * change
    return result
