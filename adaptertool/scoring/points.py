"""What is known of a curve: from an earlier run, from OUT, and what was measured since."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from adaptertool.errors import OutputError
from adaptertool.files.hub import called
from adaptertool.output.manifest import recipe_key
from adaptertool.records import dataclass
from adaptertool.reports.curve import CurvePoint, CurveReport, best_alphas
from adaptertool.reports.scores import ALL, BEST, SCORES, Scores, best_point, mean_of, target_and_reference
from adaptertool.scoring.published import REMEDY, like_others, measured_points, published_scores
from adaptertool.scoring.scorer import Scorer
from adaptertool.scoring.settings import ScoreSettings
from adaptertool.spec.plan import Output, Plan


@dataclass(slots=True)
class Curve:
    plan: Plan
    scorer: Scorer
    wishes: ScoreSettings
    out: Path | None
    key: str
    known: dict[float, Scores]  # by alpha; those of an earlier run may be of other alphas too
    failures: dict[float, str]

    @classmethod
    def of(cls, plan: Plan, scorer: Scorer, wishes: ScoreSettings, out: Path | None, hashes: tuple[str, ...]) -> Curve:
        recipe = recipe_key(dataclasses.replace(plan, outputs=()), hashes)  # with other alphas it is the same curve
        key = blake3(repr((recipe, scorer.identity)).encode()).hexdigest(8)
        return cls(plan, scorer, wishes, out, key, {}, {})

    def point(self, output: Output, path: str | None = None) -> CurvePoint:
        scores = self.known.get(output.alpha, {})
        return CurvePoint(output.alpha, scores, mean_of(scores), self.failures.get(output.alpha), path)

    def add(self, alpha: float, scores: Scores) -> None:
        """Raises ScoringError where the other points have other scores."""
        self.known[alpha] = like_others(scores, self.known.values())

    def kept(self) -> tuple[Output, ...]:
        """The outputs that are to be kept, as far as is known. Raises UsageError for a target that there is not."""
        points = [self.point(output) for output in self.plan.outputs]
        target, _ = target_and_reference(points, self.wishes.target, self.wishes.reference)
        if self.wishes.keep == ALL:
            return self.plan.outputs
        if self.wishes.keep != BEST or target is None:
            return ()
        best = best_point(points, target, minimise=self.wishes.minimise)
        return tuple(output for output in self.plan.outputs if output.alpha == best.alpha)

    def report(self, notes: tuple[str, ...]) -> CurveReport:
        out = self.out if any(output.alpha in self.known for output in self.plan.outputs) else None
        kept = self.kept() if out is not None else ()
        points = tuple(
            self.point(one, str(out / one.folder) if out and one in kept else None) for one in self.plan.outputs
        )
        target, reference = target_and_reference(points, self.wishes.target, self.wishes.reference)
        return CurveReport(
            command=self.plan.command,
            base=called(self.plan.base),
            sources=tuple(map(called, self.plan.sources)),
            precision=self.plan.precision,
            scored_by=self.scorer.name,
            key=self.key,
            out=None if out is None else str(out),
            keep=self.wishes.keep,
            minimise=self.wishes.minimise,
            target=target,
            reference=reference,
            ok=all(point.scores for point in points),
            points=points,
            best=best_alphas(points, minimise=self.wishes.minimise),
            notes=(*self.plan.notes, *notes),
        )

    def published(self, out: Path) -> Mapping[str, Any] | None:
        """The report that stands in `out`, if it is one of this curve. Raises OutputError where `out` has points that
        are not to be lost: of another curve, or of alphas that are not asked for now."""
        content = published_scores(out, self.key) if self.scorer.lasting else None
        if content is None:
            return None
        more = set(read_points(content, out / SCORES)) - {output.alpha for output in self.plan.outputs}
        if more:
            raise OutputError(f"{out} has alpha {min(more):g} too, which is not asked for now; {REMEDY}")
        return content


def read_points(content: Mapping[str, Any], path: Path) -> dict[float, Scores]:
    """The points that were measured, by alpha, of a file that adaptertool wrote. Raises InputError for any other."""
    return dict(measured_points(content, path, lambda point: float(point["alpha"])))
