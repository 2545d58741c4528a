"""What a way of combining changes is: pure functions over a block of the base and of each source's change to it.

Arithmetic is float64, in an order that is fixed, and the result is rounded once: the same bytes on every machine, and
for any threads and blocks; not settled where float64 leaves two values possible, as a plain merge is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from adaptertool.methods.setting import Setting, Settings

Array = Any  # of numpy


class Place(NamedTuple):
    """Where a block lies, which is all that chance may depend on, beside the settings."""

    tensor: str
    first: int  # element
    size: int  # elements


class Sums(NamedTuple):
    """Sums over a whole tensor W, and T, which the one source makes of it."""

    base: float  # ‖W‖²
    tuned: float  # ‖T‖²
    product: float  # ⟨W, T⟩


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How changes are combined.

    source:   the paper, or the implementation whose results are met
    combine:  (base, changes, weights, settings, sums) -> the result; flat float64 arrays. sums: None unless `spans`
    settings: what it is given beside the weights, by name. One name is one setting in all methods that have it
    prune:    (change, settings, place, source) -> the change with a part of its elements 0, where chance says which
    trims:    the name of the setting that says which share of each tensor, the elements of largest magnitude, stays;
              all others are 0 before `prune` and `combine` see them
    spans:    whether `combine` needs sums over the whole tensor
    only:     how many sources it takes, where that is fixed
    """

    name: str
    source: str
    combine: Callable[[Array, Sequence[Array], Sequence[float], Settings, Sums | None], Array]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    prune: Callable[[Array, Settings, Place, int], Array] | None = None
    trims: str | None = None
    spans: bool = False
    only: int | None = None

    def share(self, settings: Settings) -> float:
        """The share of each tensor that stays when it is trimmed."""
        return 1.0 if self.trims is None else settings[self.trims]

    def thinned(self, change: Array, settings: Settings, place: Place, source: int, largest: Any, part: int) -> Array:
        """What stays of a block of a change. largest: of the whole change (numerics.top_k), if the method trims; part:
        the number of this block there."""
        if self.trims:
            change = change * largest.mask(change, part)
        return change if self.prune is None else self.prune(change, settings, place, source)


def weighted_sum(
    base: Array, changes: Sequence[Array], weights: Sequence[float], _settings: Settings, _sums: Sums | None
) -> Array:
    """W + Σ w_i·δ_i, in order."""
    result = base.copy()
    for change, weight in zip(changes, weights, strict=True):
        result += weight * change
    return result
