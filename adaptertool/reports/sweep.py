"""A sweep over numbers of a recipe as data: the scores of what it makes with each, and which are best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from adaptertool.records import dataclass
from adaptertool.reports.apply import StepReport
from adaptertool.reports.notebook import InNotebook
from adaptertool.reports.scores import Scores, best_point, names_of, value_of

PAGE = "sweep.html"  # beside the files of its scores
GRID, COORDINATE = SEARCHES = ("grid", "coordinate")


@dataclass(frozen=True, slots=True)
class SweepPoint:
    at: Mapping[str, str]  # the numbers, by their places in the recipe; exact decimals
    scores: Scores  # by name; none where making or measuring failed
    mean: float | None  # of the scores, where there are several
    failure: str | None = None  # what went wrong, with the end of what the command printed
    made: str | None = None  # BLAKE3 of the manifest of what was scored, or of the file that it is


@dataclass(frozen=True, slots=True)
class BestPoint:
    score: str  # its name, or "mean"
    at: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport(InNotebook):
    schema: ClassVar[str] = "sweep/1"
    recipe: str
    search: str  # "grid": every combination; "coordinate": one number at a time, while that makes it better
    numbers: Mapping[str, tuple[str, ...]]  # the values that were asked for, by their places in the recipe
    start: Mapping[str, str]  # what the recipe itself has there
    scored_by: str  # the command, or the name of the function
    key: str  # of the inputs, the rest of the recipe and what scores: only points of the same key are taken over
    out: str | None  # what the best numbers make; None: nothing was published
    results: str | None  # the folder of the scores; None: they are not written
    keep: str
    minimise: bool  # lower scores are better
    target: str | None  # None: nothing was measured
    reference: str | None  # None: there is one score only
    ok: bool  # every point was measured
    points: tuple[SweepPoint, ...]  # in the order in which they were asked for; then those of earlier runs
    best: tuple[BestPoint, ...]  # of each score, then of the mean
    dry_run: bool
    planned: tuple[StepReport, ...]  # of a dry run: the plan of the first point
    notes: tuple[str, ...]


def best_points(points: Sequence[SweepPoint], *, minimise: bool) -> tuple[BestPoint, ...]:
    found = []
    for name in names_of(points):
        point = best_point(points, name, minimise=minimise)
        found.append(BestPoint(name, point.at, value_of(point, name)))
    return tuple(found)
