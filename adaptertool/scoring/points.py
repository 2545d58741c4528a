"""What is known of a curve: from an earlier run, from OUT, and what was measured since."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from adaptertool.errors import InputError, OutputError, shown
from adaptertool.files.checkpoint import MANIFEST, load_manifest
from adaptertool.files.hashing import BLAKE3, digests_of
from adaptertool.files.hub import called
from adaptertool.files.jsonfile import load_json
from adaptertool.output.manifest import recipe_key
from adaptertool.reports.curve import (
    ALL,
    BEST,
    SCORES,
    CurvePoint,
    CurveReport,
    Scores,
    best_alphas,
    best_point,
    mean_of,
    target_and_reference,
)
from adaptertool.scoring.scorer import Scorer, ScoringError, checked_scores
from adaptertool.scoring.settings import CurveSettings
from adaptertool.spec.plan import Output, Plan


@dataclass(slots=True)
class Curve:
    plan: Plan
    scorer: Scorer
    wishes: CurveSettings
    out: Path | None
    key: str
    known: dict[float, Scores]  # by alpha; those of an earlier run may be of other alphas too
    failures: dict[float, str]

    @classmethod
    def of(cls, plan: Plan, scorer: Scorer, wishes: CurveSettings, out: Path | None, hashes: tuple[str, ...]) -> Curve:
        recipe = recipe_key(dataclasses.replace(plan, outputs=()), hashes)  # with other alphas it is the same curve
        key = blake3(repr((recipe, scorer.identity)).encode()).hexdigest(8)
        return cls(plan, scorer, wishes, out, key, {}, {})

    def point(self, output: Output, path: str | None = None) -> CurvePoint:
        scores = self.known.get(output.alpha, {})
        return CurvePoint(output.alpha, scores, mean_of(scores), self.failures.get(output.alpha), path)

    def add(self, alpha: float, scores: Scores) -> None:
        """Raises ScoringError where the other points have other scores."""
        other = next(iter(self.known.values()), scores)
        if scores.keys() != other.keys():
            ours, theirs = (", ".join(map(shown, some)) for some in (scores, other))
            raise ScoringError(f"its scores are {ours}, but those of other points {theirs}")
        self.known[alpha] = {name: scores[name] for name in other}

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
        if not self.scorer.lasting or not (out / SCORES).is_file() or not (out / MANIFEST).is_file():
            return None
        content, files = load_json(out / SCORES), load_manifest(out).get("files")
        remedy = "choose another OUT, or replace it with --force"
        facts = files.get(SCORES) if isinstance(files, dict) else None
        if not isinstance(facts, dict) or facts.get(BLAKE3) != digests_of(out / SCORES)[BLAKE3]:
            raise OutputError(f"{out / SCORES} is not as adaptertool wrote it; {remedy}")
        if content.get("key") != self.key:
            raise OutputError(
                f"{out} holds the scores of another command, or of other inputs, or one of their files was changed "
                f"since; {remedy}"
            )
        more = set(read_points(content, out / SCORES)) - {output.alpha for output in self.plan.outputs}
        if more:
            raise OutputError(f"{out} has alpha {min(more):g} too, which is not asked for now; {remedy}")
        return content


def read_points(content: Mapping[str, Any], path: Path) -> dict[float, Scores]:
    """The points that were measured, by alpha, of a file that adaptertool wrote. Raises InputError for any other."""
    try:
        measured = [point for point in content["points"] if point["scores"]]
        return {float(point["alpha"]): checked_scores(point["scores"]) for point in measured}
    except (KeyError, TypeError, ValueError, ScoringError) as error:
        raise InputError(f"{path} is not as adaptertool wrote it; --force measures anew") from error
