"""Searches over points, each a value for every one of several numbers, whose scores are asked for one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

Point = tuple[str, ...]


def grid(values: Sequence[Sequence[str]]) -> Iterator[Point]:
    """Every combination; the last number changes first."""
    return itertools.product(*values)


def coordinate_search(
    start: Point, values: Sequence[Sequence[str]], score: Callable[[Point], float | None], *, minimise: bool
) -> Point:
    """The best point that is found by changing one number at a time: to that of its values which scores best, where it
    is better than what was best so far; number after number, until none makes it better any more. Of equal ones it is
    the first. It ends, since it goes on only where the score has become strictly better, and points are finitely many.

    start: where it begins; its numbers need not be among the values
    score: told each point that is looked at, also again; None where it has no score
    """
    sign = -1.0 if minimise else 1.0

    def rated(point: Point) -> float:
        found = score(point)
        return float("-inf") if found is None else sign * found

    best, highest, unchanged, axis = start, rated(start), 0, 0
    while unchanged < len(values):
        before = best
        for value in values[axis]:
            point = (*before[:axis], value, *before[axis + 1 :])
            if (found := rated(point)) > highest:
                best, highest = point, found
        unchanged = unchanged + 1 if best == before else 0
        # What a number was just chosen by needs no second look, until another has changed
        unchanged = max(unchanged, 1)
        axis = (axis + 1) % len(values)
    return best
