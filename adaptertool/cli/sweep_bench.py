"""A sweep as it is run: points are made one after the other, scored, and noted; the best is made again as OUT.

In the staging directory beside the folder of the results: the scores that are known, in a file for each point (as in
scoring.run); the temporary steps, which a point shares with the one before as far as they are the same; and, while it
is scored, what a point has made.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from adaptertool.cli.making import keys_of, make_steps, require_free
from adaptertool.cli.steps import Run
from adaptertool.cli.sweep_asked import Asked
from adaptertool.errors import (
    AdapterToolError,
    InputError,
    MismatchError,
    OutputError,
    UnsupportedError,
    UsageError,
    shown,
)
from adaptertool.files.checkpoint import MANIFEST, load_manifest
from adaptertool.files.hashing import BLAKE3, digests_of
from adaptertool.files.jsonfile import load_json
from adaptertool.files.place import STEPS
from adaptertool.files.publish import make_directory
from adaptertool.files.staging import Staging
from adaptertool.output.integrity import check_files
from adaptertool.output.manifest import facts_of, write_manifest
from adaptertool.recipes.numbers import Point
from adaptertool.recipes.workshop import Workshop
from adaptertool.records import dataclass
from adaptertool.render.score_files import result_files
from adaptertool.reports.scores import SCORES, Scores
from adaptertool.reports.sweep import SweepPoint, SweepReport
from adaptertool.scoring.run import put
from adaptertool.scoring.scorer import ScoringError

_NOTES, _POINT = "scores", "point"  # folders in the staging directory
# What a point may be refused for while others are not: numbers that do not go together
_REFUSALS = (UsageError, InputError, UnsupportedError)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where points are made and scored."""

    asked: Asked
    stage: Staging

    @property
    def _steps(self) -> Path:
        return self.stage.folder / STEPS

    def measure(self, point: Point) -> tuple[Scores, str | None]:
        """The scores of a point, and the fingerprint of what was scored. Raises ScoringError where it cannot be made of
        these numbers, a check of the recipe fails, or scoring does; AdapterToolError for all that is not its fault."""
        make_directory(self._steps)
        shop = Workshop(self._steps)
        out = self._steps / _POINT / Path(Run(self.asked.recipe, self.asked.out, self.asked.how).target or "out").name
        run = self.asked.run(point, str(out), apart=True)
        try:
            shop.leave_only({key for number, key in keys_of(run).items() if number != run.last})
            make_directory(out.parent)
            make_steps(run, shop)
            if failed := next((one for one in run.done if not one.ok), None):
                raise ScoringError(f"step {len(run.done)}, {failed.command}: its check failed")
            made = fingerprint(out)
            scores = self.asked.scorer.score(out)
        except _REFUSALS as error:
            raise ScoringError(error.on_command_line) from error
        finally:
            shutil.rmtree(self._steps / _POINT, ignore_errors=True)
        if clash := next((axis.name for axis in self.asked.axes if axis.name in scores), None):
            raise ScoringError(f"a score cannot be called {shown(clash)}, which is a column of the table already")
        return scores, made

    def note(self, point: SweepPoint) -> None:
        """Make scores durable, so that they outlive this run."""
        content = {"points": [{"at": dict(point.at), "scores": dict(point.scores), "made": point.made}]}
        name = blake3(repr(sorted(point.at.items())).encode()).hexdigest(8)
        put(self.stage, f"{_NOTES}/{name}.json", json.dumps(content).encode())
        self.stage.precious = True

    def take_notes(self, take: Callable[[Mapping[str, Any], Path], None]) -> None:
        """Take over what an interrupted run has noted."""
        for name in self.stage.finished:
            if name == SCORES or name.startswith(f"{_NOTES}/"):
                self.stage.precious = True
                take(load_json(self.stage.work / name), self.stage.work / name)

    def forget(self) -> None:
        for name in (_NOTES, SCORES):
            self.stage.discard(name)

    def make_best(self, point: Point, scored: str | None, *, ours: bool) -> None:
        """Make OUT, with the bytes that were scored. Raises AdapterToolError."""
        out = self.asked.target
        assert out is not None
        if ours and scored is not None and fingerprint(out) == scored:
            return
        if ours and out.is_file():
            raise OutputError(f"{out} was the best of an earlier run, and now another is: remove it, and run again")
        run = self.asked.run(point, self.asked.out, apart=False)
        run.how = dataclasses.replace(run.how, force=run.how.force or ours)
        make_steps(run, Workshop(self._steps))
        if not all(one.ok for one in run.done) or (scored is not None and fingerprint(out) != scored):
            raise MismatchError(f"{out} is not what was scored: something it is made of changed meanwhile; run again")

    def require_free(self, point: Point, made: Collection[str]) -> bool:
        """Refuse an OUT that is taken, before anything is made; returns whether the OUT that is there is ours: what an
        earlier run of this sweep has published. made: fingerprints of what was scored. Raises OutputError."""
        out = self.asked.target
        if out is None:
            return False
        found = fingerprint(out)
        ours = found is not None and found in made and (out.is_file() or check_files(out).ok)
        run = self.asked.run(point, self.asked.out, apart=False)
        require_free(run, {*_made_with(out, run), run.last or 0} if ours else ())
        return ours

    def publish(self, report: SweepReport, *, force: bool) -> None:
        """Put the results in their place. Raises AdapterToolError."""
        stage = self.stage
        self.forget()
        for name, content in result_files(report).items():
            put(stage, name, content)
        recipe = {"command": "apply --sweep", "recipe": Path(report.recipe).name, "search": report.search}
        write_manifest(stage.work, recipe, {"sources": []}, facts_of(stage.work, {}, stage.hashes), stage.hashes)
        stage.sync()
        stage.publish(stage.work, force=force)


def _made_with(out: Path, run: Run) -> Iterator[int]:
    """The steps before OUT whose own outputs are still as they were when it was made: its manifest has theirs."""
    for number, told in enumerate(load_manifest(out).get("steps", ()) if out.is_dir() else ()):
        kept = run.kept(number) if number < len(run.steps) and "manifest" in told else None
        if kept is not None and fingerprint(Path(kept)) == _of_files(told["manifest"]):
            yield number


def _of_files(content: Mapping[str, Any]) -> str:
    return blake3(json.dumps(content["files"], sort_keys=True).encode()).hexdigest()


def fingerprint(out: Path) -> str | None:
    """What tells the files of an output from all others; None where it is not there, or has no manifest."""
    try:
        if out.is_file():
            return digests_of(out)[BLAKE3]
        if (out / MANIFEST).is_file():
            return _of_files(load_manifest(out))
    except (AdapterToolError, OSError, KeyError):
        pass
    return None
