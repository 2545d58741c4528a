"""A Wise-FT curve as data: the scores of W + α·(T − W) at each α, and which α is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from adaptertool.records import dataclass
from adaptertool.reports.notebook import InNotebook
from adaptertool.reports.scores import Scores, best_point, names_of, value_of

PAGE = "curve.html"  # beside the files of its scores


@dataclass(frozen=True, slots=True)
class CurvePoint:
    alpha: float
    scores: Scores  # by name; none where measuring failed
    mean: float | None  # of the scores, where there are several
    failure: str | None = None  # what went wrong, with the end of what the command printed
    path: str | None = None  # of the checkpoint, where it is kept

    @property
    def at(self) -> Mapping[str, str]:
        """α, as it is shown."""
        return {"alpha": f"{self.alpha:.12g}"}


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


def best_alphas(points: Sequence[CurvePoint], *, minimise: bool) -> tuple[BestAlpha, ...]:
    found = []
    for name in names_of(points):
        point = best_point(points, name, minimise=minimise)
        found.append(BestAlpha(name, point.alpha, value_of(point, name)))
    return tuple(found)
