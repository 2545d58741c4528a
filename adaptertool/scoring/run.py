"""Makes the checkpoints of a curve, has each scored, and publishes what was found.

Each score is noted, in a file of its own in the staging directory, once it is known; what was noted, or published, is
not measured again. In OUT: alpha-0.300 and so on, scores.json (the report), scores.csv, curve.html.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from adaptertool.engine.budget import bytes_to_write
from adaptertool.engine.execute import run_plan
from adaptertool.engine.preflight import require_equal, require_finite_factors
from adaptertool.engine.reads import read_files
from adaptertool.engine.resources import thread_count
from adaptertool.errors import StorageError, UsageError, shown
from adaptertool.files import publish
from adaptertool.files.checkpoint import load_manifest
from adaptertool.files.hashing import DEFAULT, WITH_SHA256, Digests, digests_of
from adaptertool.files.jsonfile import load_json
from adaptertool.files.reader import Inputs
from adaptertool.files.staging import Staging
from adaptertool.files.writer import write_small
from adaptertool.output.checkpoint import allow_files
from adaptertool.output.leftovers import Leftovers
from adaptertool.output.manifest import Record, labels_of, write_manifests
from adaptertool.output.options import Options
from adaptertool.output.target import check_output
from adaptertool.output.verified import require_verifiable, verify_outputs
from adaptertool.records import dataclass
from adaptertool.render.machine import to_json
from adaptertool.render.score_files import result_files, without_page
from adaptertool.reports.curve import PAGE, CurvePoint, CurveReport
from adaptertool.reports.scores import ALL, BEST, SCORES, Scores
from adaptertool.scoring.points import Curve, read_points
from adaptertool.scoring.scorer import Scorer, ScoringError
from adaptertool.scoring.settings import ScoreSettings
from adaptertool.spec.plan import Output, Plan

_NOTES = "scores"  # the folder of the scores that are known, in the staging directory
_SHARE = 2  # of the free space, one part for checkpoints; the rest is for what scores them, and for others


@dataclass(frozen=True, slots=True)
class CheckpointMaker:
    """What makes the checkpoints to score, and where."""

    plan: Plan
    out: Path
    stage: Staging
    inputs: Inputs
    threads: int
    verify: bool

    def make(self, outputs: Sequence[Output]) -> None:
        """Make the checkpoints that are not there yet, with one read of the base."""
        missing = tuple(one for one in outputs if not self.stage.finished.keys() >= _files_of(self.plan, one))
        if missing:
            part = dataclasses.replace(self.plan, outputs=missing)
            names = set().union(*(_files_of(self.plan, one) for one in missing))
            there = sum(file.size for name, file in self.stage.finished.items() if name in names)
            self.stage.require_space(bytes_to_write(part) - there)
            allow_files(len(missing))
            run_plan(part, self.stage, self.inputs, self.threads, lambda _: None)
        for one in outputs:
            for name, content in one.files:
                if not (path := self.stage.work / one.folder / name).exists():
                    write_small(path, content)
        self.inputs.check_unchanged()
        if missing and self.verify:
            verify_outputs(part, self.stage.work, self.threads)

    def has_room(self, outputs: Sequence[Output]) -> bool:
        """Whether there may well be all of them at once."""
        part = dataclasses.replace(self.plan, outputs=tuple(outputs))
        free = publish.free_space(self.out)
        return free is not None and bytes_to_write(part) <= free // _SHARE

    def leave_only(self, outputs: Iterable[Output], *more: str) -> None:
        folders = {*more, *(output.folder for output in outputs)}
        for path in self.stage.work.iterdir():
            if path.is_dir() and path.name not in folders:
                self.stage.discard(path.name)

    def note(self, output: Output, scores: Scores) -> None:
        """Make scores durable, so that they outlive this run."""
        points = [{"alpha": output.alpha, "scores": scores}]
        put(self.stage, f"{_NOTES}/{output.folder}.json", json.dumps({"points": points}).encode())
        self.stage.precious = True


def _files_of(plan: Plan, output: Output) -> set[str]:
    """The files that `run_plan` makes of an output."""
    names = [shard.name for shard in plan.shards] + [asset.name for asset in plan.assets]
    return {f"{output.folder}/{name}" for name in names}


def put(stage: Staging, name: str, content: bytes) -> None:
    part = stage.part()
    write_small(part, content)
    stage.finish(part, name, digests_of(part, stage.hashes))


def score_curve(
    plan: Plan,
    out: Path | None,
    scorer: Scorer,
    wishes: ScoreSettings,
    options: Options,
    progress: Callable[[CurvePoint], None],
) -> CurveReport:
    """The arguments are those of `wise_curve`; a note of the options is told what is known before the first score."""
    threads, force = thread_count(options.threads), options.force
    require_verifiable(plan, verify=options.verify)
    hashes = WITH_SHA256 if options.sha256 else DEFAULT
    curve, earlier = Curve.of(plan, scorer, wishes, out, hashes), None
    notes = without_page(PAGE) if out is not None else ()
    place = out or Path(f"curve-{curve.key}")  # where nothing is published, the staging directory is named after this
    if out is None:
        check_output(plan, place, force=False)
    else:
        publish.require_local(out)
        earlier = None if force else curve.published(out)
        check_output(plan, out, force=force or earlier is not None)
        if earlier is not None:
            curve.known = read_points(earlier, out / SCORES)
            if json.loads(to_json(curve.report(notes))) == earlier:
                return curve.report(notes)
    with Inputs(plan.inputs, hashes) as inputs:
        more = require_finite_factors(plan, inputs)
        require_equal(plan, inputs)
        with Staging(place, curve.key, hashes, labels=labels_of(plan)) as stage:
            others = Leftovers(place, stage.folder, clean=options.clean)
            for text in others.at_start():
                options.tell_note(text)
            inputs.digests |= stage.inputs
            bench = CheckpointMaker(plan, place, stage, inputs, threads, options.verify)
            _begin(bench, curve, anew=force or not scorer.lasting, adopt=earlier is not None)
            _score_all(bench, curve, progress)
            report = curve.report(notes)
            if report.out is not None:
                _publish(bench, curve, report, force=force or earlier is not None, before=options.begin_publishing)
            elif curve.scorer.lasting and curve.known and not report.ok and not stage.alone:
                bench.leave_only((), _NOTES)
                stage.stays = True
                hint = f"the same command goes on from there; `adaptertool clean {place}` removes it"
                more.append(f"the scores so far are kept in {stage.folder}: {hint}")
            more += [*stage.notes, *others.at_end()]
    return dataclasses.replace(report, notes=(*report.notes, *more))


def _begin(bench: CheckpointMaker, curve: Curve, *, anew: bool, adopt: bool) -> None:
    """Take over what an interrupted run has noted, else what is published; and the published checkpoints."""
    stage = bench.stage
    if anew:
        stage.discard(_NOTES)
        stage.discard(SCORES)
    for name in stage.finished:
        if name == SCORES or name.startswith(f"{_NOTES}/"):
            stage.precious = True
            curve.known |= read_points(load_json(stage.work / name), stage.work / name)
    if adopt and curve.wishes.keep in (ALL, BEST):
        ours = set().union(*(_files_of(bench.plan, output) for output in bench.plan.outputs))
        files = load_manifest(bench.out).get("files")
        for name, facts in files.items() if isinstance(files, dict) else ():
            if name in ours and isinstance(facts, dict):
                _adopt(stage, bench.out / name, name, {kind: facts.get(kind, "") for kind in stage.hashes})


def _adopt(stage: Staging, source: Path, name: str, digests: Digests) -> None:
    """Take a file over, as a link, if its hashes are these. Else, and where there are no links, nothing happens."""
    with contextlib.suppress(OSError, StorageError):
        if name not in stage.finished and digests_of(source, stage.hashes) == digests:
            part = stage.part()
            os.link(source, part)
            stage.finish(part, name, digests)


def _score_all(bench: CheckpointMaker, curve: Curve, progress: Callable[[CurvePoint], None]) -> None:
    """Score all checkpoints with one read of the base, where all are to be kept or there is room; else one by one."""
    left = [output for output in bench.plan.outputs if output.alpha not in curve.known]
    wanted = bench.plan.outputs if curve.wishes.keep == ALL else tuple(left)
    if at_once := curve.wishes.keep == ALL or bench.has_room(wanted):
        bench.make(wanted)
    while left:
        _score(bench, curve, left.pop(0), progress)
        bench.leave_only([*curve.kept(), *(left if at_once else ())], _NOTES)


def _score(bench: CheckpointMaker, curve: Curve, output: Output, progress: Callable[[CurvePoint], None]) -> None:
    bench.make([output])
    work = bench.stage.work
    before = _states(work)
    try:
        curve.add(output.alpha, curve.scorer.score(work / output.folder))
    except ScoringError as error:
        curve.failures[output.alpha] = str(error)
    changed = [name for name, _ in sorted(before ^ _states(work))]
    if curve.scorer.lasting and output.alpha in curve.known:
        bench.note(output, curve.known[output.alpha])
    progress(curve.point(output))
    if output not in curve.kept():  # then it may do with it what it likes
        changed = [name for name in changed if Path(name).parts[0] != output.folder]
    if changed:
        raise UsageError(
            f"{shown(curve.scorer.name)} changed {shown(changed[0])} among the checkpoints that it was to score, which "
            "then are not what adaptertool made: have it write elsewhere"
        )


def _states(folder: Path) -> set[tuple[str, tuple[int, ...]]]:
    """What is in it, by name, with what tells whether it was changed; of a folder inside that it is there."""
    found: set[tuple[str, tuple[int, ...]]] = set()
    for path in folder.rglob("*"):
        facts = path.lstat()
        state = () if stat.S_ISDIR(facts.st_mode) else (facts.st_mode, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        found.add((str(path.relative_to(folder)), state))
    return found


def _publish(
    bench: CheckpointMaker, curve: Curve, report: CurveReport, *, force: bool, before: Callable[[], None]
) -> None:
    stage, kept = bench.stage, curve.kept()
    bench.make(kept)
    files = result_files(report)
    for name, content in files.items():
        put(stage, name, content)
    bench.leave_only(kept)  # now that the scores stand in the report, without the notes
    for path in read_files(bench.plan):
        bench.inputs.hash(path)  # if it was not on the way
    record = Record(dataclasses.replace(bench.plan, outputs=kept), stage, bench.inputs.digests)
    record.require_all(*files)
    write_manifests(record)
    stage.sync()
    bench.inputs.check_unchanged()
    before()
    stage.publish(stage.work, force=force)
