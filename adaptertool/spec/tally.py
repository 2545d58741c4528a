"""What became of the elements that a run edits, as numbers that add up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

_LARGEST = 1e290  # of a sum that is told: a million of them can be added


class Tally(NamedTuple):
    """Counts of elements; and of those of a sample, sums over what was stored, W', what was there, W, and the change in
    floats before it was rounded, Δ."""

    changed: int = 0  # whose stored bits are not the base's
    settled: int = 0  # so near to the middle of two stored values that exact arithmetic decided
    one_by_one: int = 0  # of these, those that it took rationals for
    kept: float = 0.0  # Σ (W' − W)·Δ
    update: float = 0.0  # Σ Δ²

    @property
    def survival(self) -> float | None:
        """⟨W' − W, Δ⟩ / ⟨Δ, Δ⟩: the share of the update that the rounding leaves. 1 where what changed was not rounded,
        None where there is no update."""
        if self.update:
            return self.kept / self.update
        return 1.0 if self.changed else None


class Fate(NamedTuple):
    """What became of weights that stay codes. Over all elements: W' what was stored, W what was there, Δ the change in
    floats before it was rounded."""

    elements: int = 0
    changed: int = 0  # codes that are others
    blocks: int = 0  # of elements that have a scale
    rescaled: int = 0  # that have another scale
    kept: float = 0.0  # Σ (W' − W)·Δ
    update: float = 0.0  # Σ Δ²
    noise: float = 0.0  # Σ (W' − W − Δ)²

    def plus(self, others: Iterable[Fate]) -> Fate:
        """The sum with others, the same in any order: each sum of floats is rounded once."""
        columns = list(zip(self, *others, strict=True))
        counts, floats = columns[:4], columns[4:]
        return Fate(*(sum(map(int, column)) for column in counts), *map(math.fsum, floats))


def fates_by_family(fates: Iterable[tuple[str, Fate]]) -> dict[str, Fate]:
    """The sum of each family of layers, in the order of their names."""
    found: dict[str, list[Fate]] = {}
    for family, fate in fates:
        found.setdefault(family, []).append(fate)
    return {family: Fate().plus(found[family]) for family in sorted(found)}


def noted_fates(fates: object) -> dict[str, Fate] | None:
    """Fates by family, from JSON; None where it is none."""
    if not isinstance(fates, dict):
        return None
    found = {}
    for family, numbers in fates.items():
        if not isinstance(numbers, list) or len(numbers) != len(Fate._fields):
            return None
        if not all(type(number) is int and number >= 0 for number in numbers[:4]):
            return None
        if not all(type(number) is float and math.isfinite(number) for number in numbers[4:]):
            return None
        found[family] = Fate(*numbers)
    return found


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies, the same in any order: each sum of floats is rounded once."""
    columns = list(zip(*tallies, strict=True)) or [()] * len(Tally._fields)
    changed, settled, one_by_one = map(sum, columns[:3])
    return Tally(changed, settled, one_by_one, *map(math.fsum, columns[3:]))


def sums(kept: float, update: float) -> tuple[float, float]:
    """The two sums of a tally as they are; zeros where they are beyond what can be added up."""
    return (kept, update) if abs(kept) < _LARGEST and update < _LARGEST else (0.0, 0.0)


def noted(tally: object) -> Tally | None:
    """A tally from JSON; None where it is none."""
    if not isinstance(tally, list) or len(tally) != len(Tally._fields):
        return None
    counts, floats = tally[:3], tally[3:]
    if all(type(count) is int and count >= 0 for count in counts) and all(type(one) is float for one in floats):
        return Tally(*counts, *floats) if sums(*floats) == tuple(floats) else None
    return None
