"""Makes the checkpoints of a curve, has each scored, and publishes what was found.

A score is noted in the staging directory once it is known; what was noted, or published, is not measured again. In
OUT: alpha-0.300 and so on, scores.json (the report), scores.csv, curve.html.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptertool.budget import bytes_to_write
from adaptertool.curve import SCORES, CurvePoint, CurveReport
from adaptertool.engine import run_plan
from adaptertool.errors import UsageError, shown
from adaptertool.files import publish
from adaptertool.files.checkpoint import MANIFEST
from adaptertool.files.jsonfile import load_json
from adaptertool.files.reader import Inputs, stamp_of
from adaptertool.files.staging import Staging, digest_of
from adaptertool.files.writer import write_small
from adaptertool.preflight import require_equal, require_finite_factors
from adaptertool.render.curve import result_files, without_page
from adaptertool.render.machine import to_json
from adaptertool.spec import Output, Plan, Stamp
from adaptertool.tasks.common import check_output, thread_count
from adaptertool.tasks.curve import ALL, BEST, Wishes
from adaptertool.tasks.known import Curve, read_points
from adaptertool.tasks.manifest import write_manifests
from adaptertool.tasks.run import require_verifiable, verify_outputs
from adaptertool.tasks.scorer import Scorer, ScoringError

_NOWHERE = Path("wise-curve")  # where nothing is published, the staging directory is named after this


@dataclass(frozen=True, slots=True)
class Bench:
    """Where checkpoints are made."""

    plan: Plan
    out: Path
    stage: Staging
    inputs: Inputs
    threads: int
    verify: bool

    def make(self, outputs: Sequence[Output]) -> None:
        """Those that are not there yet, with one read of the base."""
        missing = tuple(one for one in outputs if not self.stage.finished.keys() >= _files_of(self.plan, one))
        if missing:
            part = dataclasses.replace(self.plan, outputs=missing)
            publish.check_space(self.out, bytes_to_write(part))
            run_plan(part, self.stage, self.inputs, self.threads, lambda _: None)
        for one in outputs:
            for name, content in one.files:
                if not (path := self.stage.work / one.folder / name).exists():
                    write_small(path, content)
        self.inputs.check_unchanged()
        if missing and self.verify:
            verify_outputs(part, self.stage.work, self.threads)

    def leave_only(self, outputs: Iterable[Output]) -> None:
        folders = {output.folder for output in outputs}
        for path in self.stage.work.iterdir():
            if path.is_dir() and path.name not in folders:
                self.stage.discard(path.name)

    def note(self, curve: Curve) -> None:
        """Make what is known durable, so that it outlives this run."""
        points = [{"alpha": alpha, "scores": scores} for alpha, scores in curve.known.items()]
        put(self.stage, SCORES, json.dumps({"key": curve.key, "points": points}).encode())
        self.stage.precious = True


def _files_of(plan: Plan, output: Output) -> set[str]:
    """The files that `run_plan` makes of an output."""
    names = [shard.name for shard in plan.shards] + [asset.name for asset in plan.assets]
    return {f"{output.folder}/{name}" for name in names}


def put(stage: Staging, name: str, content: bytes) -> None:
    part = stage.part(name)
    write_small(part, content)
    stage.finish(part, name, digest_of(part))


def score_curve(
    plan: Plan,
    out: Path | None,
    scorer: Scorer,
    wishes: Wishes,
    *,
    force: bool,
    verify: bool,
    threads: int | None,
    progress: Callable[[CurvePoint], None],
    before_publish: Callable[[], None] = lambda: None,
) -> CurveReport:
    """The arguments are those of `wise_curve`. before_publish: called when all is done, just before OUT changes."""
    threads = thread_count(threads)
    require_verifiable(plan, verify=verify)
    curve, earlier = Curve.of(plan, scorer, wishes, out), None
    notes = without_page() if out is not None else ()
    if out is not None:
        earlier = None if force else curve.published(out)
        check_output(plan, out, force=force or earlier is not None)
        if earlier is not None:
            curve.known = read_points(earlier, out / SCORES)
            if json.loads(to_json(curve.report(notes))) == earlier:
                return curve.report(notes)
    place = out or _NOWHERE
    with Inputs(plan.inputs) as inputs:
        require_finite_factors(plan, inputs)
        require_equal(plan, inputs)
        with Staging(place, curve.key) as stage:
            bench = Bench(plan, place, stage, inputs, threads, verify)
            _begin(bench, curve, anew=force, adopt=earlier is not None)
            _score_all(bench, curve, progress)
            report = curve.report(notes)
            if report.out is not None:
                _publish(bench, curve, report, force=force or earlier is not None, before=before_publish)
    return report


def _begin(bench: Bench, curve: Curve, *, anew: bool, adopt: bool) -> None:
    """Take over what an interrupted run has noted, else what is published; and the published checkpoints."""
    stage = bench.stage
    if anew:
        stage.discard(SCORES)
    elif SCORES in stage.finished:
        stage.precious = True
        curve.known = read_points(load_json(stage.work / SCORES), stage.work / SCORES)
    if adopt and curve.wishes.keep in (ALL, BEST):
        ours = set().union(*(_files_of(bench.plan, output) for output in bench.plan.outputs))
        files = load_json(bench.out / MANIFEST).get("files")
        for name, facts in files.items() if isinstance(files, dict) else ():
            if name in ours and isinstance(facts, dict):
                stage.adopt(bench.out / name, name, facts.get("blake3", ""))


def _score_all(bench: Bench, curve: Curve, progress: Callable[[CurvePoint], None]) -> None:
    at_once = curve.wishes.keep == ALL
    bench.make(bench.plan.outputs if at_once else curve.kept())
    for output in bench.plan.outputs:
        if output.alpha in curve.known:
            continue
        if not at_once:
            bench.make([output])
        folder = bench.stage.work / output.folder
        before = _stamps(folder)
        try:
            curve.add(output.alpha, curve.scorer.score(folder))
            bench.note(curve)
        except ScoringError as error:
            curve.failures[output.alpha] = str(error)
        progress(curve.point(output))
        kept = curve.kept()
        if output in kept and (changed := _difference(before, _stamps(folder))):
            raise UsageError(
                f"{shown(curve.scorer.name)} changed {shown(changed)} in the checkpoint that it was to score, which "
                "then is not what adaptertool made: have it write elsewhere, or use --keep none"
            )
        if not at_once:
            bench.leave_only(kept)


def _stamps(folder: Path) -> dict[str, Stamp]:
    return {str(path.relative_to(folder)): stamp_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _difference(before: dict[str, Stamp], after: dict[str, Stamp]) -> str | None:
    """The first file that came, went or changed."""
    return next((name for name in sorted(before | after) if before.get(name) != after.get(name)), None)


def _publish(bench: Bench, curve: Curve, report: CurveReport, *, force: bool, before: Callable[[], None]) -> None:
    stage, kept = bench.stage, curve.kept()
    bench.make(kept)
    bench.leave_only(kept)
    for name, content in result_files(report).items():
        put(stage, name, content)
    write_manifests(dataclasses.replace(bench.plan, outputs=kept), stage)
    publish.sync_tree(stage.work)
    bench.inputs.check_unchanged()
    before()
    publish.publish(stage.work, bench.out, force=force)
