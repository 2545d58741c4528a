"""Points that were scored, whatever they are points of: their mean, the best of them, and which scores count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from adaptertool.errors import UsageError, argument, shown

SCORES, TABLE = "scores.json", "scores.csv"  # the files of all that is scored
ALL, BEST, NONE = KEEP = ("all", "best", "none")  # of the checkpoints
MEAN = "mean"  # of all scores of a point, as if it were another score

Scores = Mapping[str, float]


class Scored(Protocol):
    """A point of a curve or of a sweep."""

    @property
    def at(self) -> Mapping[str, str]:
        """Where it is: its numbers, by their names, as they are shown."""

    @property
    def scores(self) -> Scores: ...

    @property
    def mean(self) -> float | None: ...

    @property
    def failure(self) -> str | None: ...


Point = TypeVar("Point", bound=Scored)


def mean_of(scores: Scores) -> float | None:
    """(1/n)·Σ scores; None for one score, whose mean it is itself, and where one of several is called so."""
    if len(scores) < 2 or MEAN in scores:
        return None
    return sum(value / len(scores) for value in scores.values())  # divided first: the sum may overflow


def value_of(point: Scored, name: str) -> float:
    """A score of a point that was measured, or its mean."""
    return point.mean if point.mean is not None and name == MEAN else point.scores[name]


def score_names(points: Iterable[Scored]) -> list[str]:
    """The scores; all points that were measured have the same."""
    return next((list(point.scores) for point in points if point.scores), [])


def names_of(points: Sequence[Scored]) -> list[str]:
    """The scores, and their mean where there is one."""
    return score_names(points) + ([MEAN] if any(point.mean is not None for point in points) else [])


def best_point(points: Sequence[Point], name: str, *, minimise: bool) -> Point:
    """The point with the best of a score; the first of several that are equal. One at least must be measured."""
    choose = min if minimise else max
    return choose((point for point in points if point.scores), key=lambda point: value_of(point, name))


def target_and_reference(
    points: Sequence[Scored], target: str | None, reference: str | None
) -> tuple[str | None, str | None]:
    """The names asked for; where None, the first scores. Raises UsageError for one that no point has."""
    names = names_of(points)
    if not names:
        return None, None
    for what, name in (("target", target), ("reference", reference)):
        if name is not None and name not in names:
            raise UsageError(f"{argument(what)} {shown(name)} is none of the scores: {', '.join(map(shown, names))}")
    scores = score_names(points)
    target = target if target is not None else next((name for name in scores if name != reference), scores[0])
    return target, reference if reference is not None else next((n for n in scores if n != drawn(points, target)), None)


def drawn(points: Sequence[Scored], target: str, reference: str | None = None) -> str:
    """What is drawn for the target against the reference: where the target is the mean, a score."""
    scores = score_names(points)
    return target if target in scores else next(name for name in scores if name != reference)
