"""What is known of a sweep, and the search that asks for more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adaptertool.cli.sweep_asked import Asked
from adaptertool.cli.sweep_bench import Bench
from adaptertool.recipes.numbers import Point, start_of
from adaptertool.records import dataclass, field
from adaptertool.reports.scores import Scores, best_point, mean_of, target_and_reference, value_of
from adaptertool.reports.sweep import GRID, SweepPoint, SweepReport, best_points
from adaptertool.scoring.published import like_others, measured_points
from adaptertool.scoring.scorer import ScoringError
from adaptertool.scoring.search import coordinate_search, grid


@dataclass(slots=True)
class Sweeping:
    """What is known of a sweep so far."""

    asked: Asked
    key: str
    progress: Callable[[SweepPoint], None]
    known: dict[Point, Scores] = field(default_factory=dict)
    made: dict[Point, str] = field(default_factory=dict)
    failures: dict[Point, str] = field(default_factory=dict)
    order: dict[Point, None] = field(default_factory=dict)  # the points that were asked for

    def take(self, content: Mapping[str, Any], path: Path) -> None:
        """Take over points that were measured. Raises InputError for a file that is not as we write it."""
        for (point, made), scores in measured_points(content, path, lambda p: (self.asked.point(p["at"]), p["made"])):
            self.known[point] = scores
            if isinstance(made, str):
                self.made[point] = made

    def point(self, point: Point) -> SweepPoint:
        at = {axis.name: text for axis, text in zip(self.asked.axes, point, strict=True)}
        scores = self.known.get(point, {})
        return SweepPoint(at, scores, mean_of(scores), self.failures.get(point), self.made.get(point))

    @property
    def points(self) -> tuple[SweepPoint, ...]:
        return tuple(map(self.point, (*self.order, *sorted(self.known.keys() - self.order.keys()))))

    def target_and_reference(self) -> tuple[str | None, str | None]:
        """Raises UsageError for a score that there is not."""
        return target_and_reference(self.points, self.asked.wishes.target, self.asked.wishes.reference)

    def best(self) -> Point | None:
        """The best point, by the target; None where none was measured."""
        target, _ = self.target_and_reference()
        if target is None:
            return None
        return self.asked.point(best_point(self.points, target, minimise=self.asked.wishes.minimise).at)

    def search(self, bench: Bench) -> None:
        """Measure what the search asks for and is not known. Raises AdapterToolError."""
        values = [axis.values for axis in self.asked.axes]
        if self.asked.search == GRID:
            for point in grid(values):
                self._look(bench, point)
            return

        def score(point: Point) -> float | None:
            self._look(bench, point)
            target, _ = self.target_and_reference()
            measured = self.point(point)
            return value_of(measured, target) if measured.scores and target is not None else None

        coordinate_search(start_of(self.asked.axes), values, score, minimise=self.asked.wishes.minimise)

    def _look(self, bench: Bench, point: Point) -> None:
        if point not in self.known and point not in self.failures:
            try:
                scores, made = bench.measure(point)
                self.known[point] = like_others(scores, self.known.values())
                self.made |= {} if made is None else {point: made}
            except ScoringError as error:
                self.failures[point] = str(error)
            if point in self.known and self.asked.scorer.lasting:
                bench.note(self.point(point))
            self.order[point] = None
            self.progress(self.point(point))
            self.target_and_reference()
        self.order.setdefault(point, None)

    def report(self, notes: tuple[str, ...]) -> SweepReport:
        asked, points = self.asked, self.points
        target, reference = self.target_and_reference()
        measured = target is not None
        return SweepReport(
            recipe=asked.recipe.file,
            search=asked.search,
            numbers={axis.name: axis.values for axis in asked.axes},
            start={axis.name: text for axis, text in zip(asked.axes, start_of(asked.axes), strict=True)},
            scored_by=asked.scorer.name,
            key=self.key,
            out=None if asked.target is None or not measured else str(asked.target),
            results=None if asked.results is None or not measured else str(asked.results),
            keep=asked.wishes.keep,
            minimise=asked.wishes.minimise,
            target=target,
            reference=reference,
            ok=not self.failures,
            points=points,
            best=best_points(points, minimise=asked.wishes.minimise),
            dry_run=False,
            planned=(),
            notes=notes,
        )
