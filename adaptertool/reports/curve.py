"""A Wise-FT curve as data: the scores of W + α·(T − W) at each α, and which α is best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from adaptertool.errors import UsageError, argument, shown
from adaptertool.reports.notebook import InNotebook

SCORES, TABLE, PAGE = "scores.json", "scores.csv", "curve.html"  # the files of a curve
ALL, BEST, NONE = KEEP = ("all", "best", "none")  # of the checkpoints
MEAN = "mean"  # of all scores of a point, as if it were another score

Scores = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    alpha: float
    scores: Scores  # by name; none where measuring failed
    mean: float | None  # of the scores, where there are several
    failure: str | None = None  # what went wrong, with the end of what the command printed
    path: str | None = None  # of the checkpoint, where it is kept


@dataclass(frozen=True, slots=True)
class BestAlpha:
    score: str  # its name, or "mean"
    alpha: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveReport(InNotebook):
    schema: ClassVar[str] = "curve/1"
    command: str
    base: str
    sources: tuple[str, ...]
    precision: str
    scored_by: str  # the command, or the name of the function
    key: str  # of the inputs, the recipe and what scores: only points of the same key are taken over
    out: str | None  # None: nothing was published
    keep: str
    minimise: bool  # lower scores are better
    target: str | None  # None: nothing was measured
    reference: str | None  # None: there is one score only
    ok: bool  # every point was measured
    points: tuple[CurvePoint, ...]
    best: tuple[BestAlpha, ...]  # of each score, then of the mean
    notes: tuple[str, ...]


def mean_of(scores: Scores) -> float | None:
    """(1/n)·Σ scores; None for one score, whose mean it is itself, and where one of several is called so."""
    if len(scores) < 2 or MEAN in scores:
        return None
    return sum(value / len(scores) for value in scores.values())  # divided first: the sum may overflow


def value_of(point: CurvePoint, name: str) -> float:
    """A score of a point that was measured, or its mean."""
    return point.mean if point.mean is not None and name == MEAN else point.scores[name]


def score_names(points: Iterable[CurvePoint]) -> list[str]:
    """The scores; all points that were measured have the same."""
    return next((list(point.scores) for point in points if point.scores), [])


def names_of(points: Sequence[CurvePoint]) -> list[str]:
    """The scores, and their mean where there is one."""
    return score_names(points) + ([MEAN] if any(point.mean is not None for point in points) else [])


def best_point(points: Sequence[CurvePoint], name: str, *, minimise: bool) -> CurvePoint:
    """The point with the best of a score; the first of several that are equal. One at least must be measured."""
    choose = min if minimise else max
    return choose((point for point in points if point.scores), key=lambda point: value_of(point, name))


def best_alphas(points: Sequence[CurvePoint], *, minimise: bool) -> tuple[BestAlpha, ...]:
    found = []
    for name in names_of(points):
        point = best_point(points, name, minimise=minimise)
        found.append(BestAlpha(name, point.alpha, value_of(point, name)))
    return tuple(found)


def target_and_reference(
    points: Sequence[CurvePoint], target: str | None, reference: str | None
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


def drawn(points: Sequence[CurvePoint], target: str, reference: str | None = None) -> str:
    """What is drawn for the target against the reference: where the target is the mean, a score."""
    scores = score_names(points)
    return target if target in scores else next(name for name in scores if name != reference)
