"""What a way of combining changes is: pure functions over a block of the base and of each source's change to it.

Arithmetic is float64, in an order that is fixed, and the result is rounded once: the same bytes on every machine, and
for any threads and blocks; not settled where float64 leaves two values possible, as a plain merge is. But what adapters
among the sources add is a product, whose sums have the order of the kernel or of BLAS: its last bits may differ between
machines, and so, rarely, may what they are rounded to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from adaptertool.methods.setting import Setting, Settings, Value, setting_of
from adaptertool.numerics.lazy import sums
from adaptertool.numerics.top_k import Band
from adaptertool.records import dataclass, field

Array = Any  # of numpy, or Lazy
Found = TypeVar("Found")


class Place(NamedTuple):
    """Where a block lies, which is all that chance may depend on, beside the settings."""

    tensor: str
    first: int  # element
    size: int  # elements
    columns: int = 1  # elements of a row; a block of a method of `rows` holds whole ones


class Block(NamedTuple):
    """The same elements of the base, and of each change to it, thinned and as it was; flat float64 arrays, Lazy where
    the method is `elementwise` and the kernel is there."""

    base: Array
    changes: Sequence[Array]
    whole: Sequence[Array]


class Each(Protocol):
    """The blocks of a tensor, of which each is given to a function, in any thread: what comes back, in order."""

    def __call__(self, function: Callable[[Block], Found], /) -> Iterable[Found]: ...


@dataclass(frozen=True, slots=True)
class Survey:
    """A whole tensor, to be looked at before its first block is combined."""

    each: Each  # may be asked several times
    weights: Sequence[float]
    settings: Settings
    columns: int  # elements of a row

    def sums(self, of: Callable[[Block], Iterable[Array]]) -> list[float]:
        """The sums of what `of` makes of each block, added up block by block in order."""
        total: list[float] = []
        for found in self.each(lambda block: sums(of(block))):
            total = [one + other for one, other in zip(total or [0.0] * len(found), found, strict=True)]
        return total


def never(_: Settings) -> bool:
    return False


def always(_: Settings) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How changes are combined.

    source:   the paper, or the implementation whose results are met
    combine:  (base, changes, weights, settings, whole) -> the result; flat float64 arrays. whole: what `survey` found
    settings: what it is given beside the weights, by name. One name is one setting in all methods that have it
    defaults: of settings whose own default is another
    survey:   finds out what `combine` needs of the whole tensor; None: nothing
    prune:    (change, settings, place, source) -> the change with a part of its elements 0, where chance says which
    trims:    the name of the setting that says which share of each tensor, the elements of largest magnitude, stays;
              all others are 0 before `prune` and `combine` see them
    fewest:   of these so many stay at least
    skips:    the name of the setting that says which share, of largest magnitude of all, goes before that
    rows:     whether blocks must hold whole rows, and know how long these are
    least:    how many sources it takes at least
    only:     how many sources it takes, where that is fixed
    refuses:  what is wrong with weights and settings that are each in its range; None: nothing
    moves:    whether also a tensor that no source changes becomes another, by these weights and settings; None: never
    sums:     whether `sum` has it, which combines factors and has no base
    elementwise: whether, with these settings, `combine`, `prune` and Survey.sums of `survey` see each element
              by itself, by what Lazy arrays can (numerics.lazy): then the kernel computes them
    """

    name: str
    source: str
    combine: Callable[[Array, Sequence[Array], Sequence[float], Settings, Any], Array]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    defaults: Mapping[str, Value] = field(default_factory=dict)
    survey: Callable[[Survey], Any] | None = None
    prune: Callable[[Array, Settings, Place, int], Array] | None = None
    trims: str | None = None
    fewest: int = 0
    skips: str | None = None
    rows: bool = False
    least: int = 1
    only: int | None = None
    refuses: Callable[[Sequence[float], Settings], str | None] | None = None
    moves: Callable[[Sequence[float], Settings], bool] | None = None
    sums: bool = False
    elementwise: Callable[[Settings], bool] = never

    def counts(self, settings: Settings, source: int, size: int) -> tuple[int, int]:
        """How many of the largest elements, by magnitude, of a change of `size` are skipped, and how many after
        these stay."""
        share = 1 if self.trims is None else setting_of(settings, self.trims, source)
        stay = min(size, max(self.fewest, int(share * size)))
        skipped = 0 if self.skips is None or stay == size else int(setting_of(settings, self.skips, source) * size)
        return min(skipped, size - stay), stay

    def thinned(
        self, change: Array, settings: Settings, place: Place, source: int, band: Band | None, part: int
    ) -> Array:
        """What stays of a block of a change. band: of the whole change, if the method trims; part: the number of this
        block there."""
        if band is not None:
            change = band.kept(change, part)
        return change if self.prune is None else self.prune(change, settings, place, source)


def weighted_sum(
    base: Array, changes: Sequence[Array], weights: Sequence[float], _settings: Settings, _whole: None
) -> Array:
    """W + Σ w_i·δ_i, in order."""
    result = base.copy()
    for change, weight in zip(changes, weights, strict=True):
        result += weight * change
    return result


def note_of(name: str) -> str:
    """What reports and manifests say of the arithmetic of a method of that name."""
    return (
        f"{name} is computed in float64 and rounded once: the same everywhere, but for the last bits of products of "
        "adapters; it is not settled"
    )
