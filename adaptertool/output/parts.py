"""Some shards of a plan, made into the staging directory in which others make the rest; and what of all is missing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from adaptertool.engine.execute import run_plan
from adaptertool.engine.preflight import require_finite_factors
from adaptertool.engine.reads import hashed_with
from adaptertool.engine.resources import peak_memory, thread_count
from adaptertool.errors import StorageError, shown
from adaptertool.files.hashing import Digests
from adaptertool.files.publish import make_directory
from adaptertool.files.reader import Inputs
from adaptertool.files.stage import NO_FATES, NOTHING, Fates, Finished, Published
from adaptertool.numerics.compiled import FUNCTIONS
from adaptertool.output.checkpoint import (
    allow_files,
    check_call,
    fewer,
    hashes_of,
    staging_of,
)
from adaptertool.output.options import Options
from adaptertool.output.verified import verify_outputs
from adaptertool.reports.parts import PartReport
from adaptertool.spec.plan import Output, Plan, Shard
from adaptertool.spec.tally import Tally

_NAMED = 3  # shards that a message names


def names_of(shard: Shard, outputs: Sequence[Output]) -> list[str]:
    """The files that a shard is, one for each output."""
    return [(Path(output.folder) / shard.name).as_posix() for output in outputs]


def make_part(
    plan: Plan, out: Path, shards: Sequence[Shard], part: tuple[int, int], options: Options, key: str
) -> PartReport:
    """Make those of these shards that are not there yet. Raises as `checkpoint.run` does."""
    start, threads, hashes = time.perf_counter(), thread_count(options.threads), hashes_of(options)
    check_call(plan, out, options)
    allow_files(len(plan.outputs))
    made, notes, written = list[str](), list[str](), 0
    with Inputs(plan.inputs, hashes) as inputs, staging_of(plan, out, hashes, part=True, key=key) as stage:
        left = [one for one in shards if not all(stage.find(name) for name in names_of(one, plan.outputs))]
        if left:
            own = dataclasses.replace(plan, shards=tuple(left), assets=())
            notes += require_finite_factors(own, inputs)
            written = sum(shard.size for shard in left) * len(plan.outputs)
            stage.require_space(written)
            hashed = hashed_with(plan)
            for some in [[one] for one in left] if options.verify else [left]:
                which = dataclasses.replace(own, shards=tuple(some))
                withheld = Withheld(stage)
                target = withheld if options.verify else stage
                streamed = [path for shard in some for path in hashed.get(shard.name, ())]
                started = run_plan(which, target, inputs, threads, options.tell_progress, (streamed, ()))
                inputs.check_unchanged()
                withheld.release(which, threads)
            stage.note_inputs()
            made = [shard.name for shard in left]
            notes += [*fewer(started, threads), *stage.notes]
    return PartReport(
        command=plan.command,
        out=str(out),
        part=part[0],
        parts=part[1],
        shards=tuple(shard.name for shard in shards),
        made=tuple(made),
        published=False,
        bytes_written=written,
        threads=threads,
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory(),
        compiled=bool(FUNCTIONS),
        verified=options.verify and bool(made),
        notes=tuple(notes),
    )


def nothing_left(plan: Plan, out: Path, shards: Sequence[Shard], part: tuple[int, int]) -> PartReport:
    """The report of a part of an OUT that is published already."""
    return PartReport(
        command=plan.command,
        out=str(out),
        part=part[0],
        parts=part[1],
        shards=tuple(shard.name for shard in shards),
        made=(),
        published=True,
        bytes_written=0,
        threads=1,
        seconds=0.0,
        peak_memory=peak_memory(),
        compiled=bool(FUNCTIONS),
        verified=False,
        notes=(),
    )


def take_made(plan: Plan, stage: Published, file: Path | None, *, check: bool) -> None:
    """Take over what parts have made. check: read it, and compare the hashes with those of the receipts. Raises
    StorageError unless all shards of the plan are finished; what is not as its receipt says is removed."""
    stage.take_over(by_hash=False)
    there = {*stage.finished}
    if check:
        stage.finished.clear()
        stage.take_over(by_hash=True)
    all_of_them = [name for shard in plan.shards for name in names_of(shard, plan.outputs)]
    how = "run again" if file is None else f"`adaptertool run {file} --part 0/1` makes what is missing"
    for what, missing in (
        ("were damaged after they were made, and are removed", there.difference(stage.finished)),
        ("are not made yet", {*all_of_them}.difference(stage.finished)),
    ):
        if names := [name for name in all_of_them if name in missing]:
            named = ", ".join(map(shown, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
            raise StorageError(f"{len(names):,} of {len(all_of_them):,} shards {what}: {named}; {how}")


class Withheld:
    """A stage whose files are finished only when they have been verified."""

    def __init__(self, stage: Published) -> None:
        self._stage, self.hashes, self.work = stage, stage.hashes, stage.work
        self.finished, self.inputs, self.unfinished = stage.finished, stage.inputs, stage.unfinished
        self._whole: list[tuple[Path, str, Digests, Tally, Fates]] = []

    def find(self, name: str) -> Finished | None:
        return self._stage.find(name)

    def part(self) -> Path:
        return self._stage.part()

    def has_read(self, path: Path, digests: Digests) -> None:
        self._stage.has_read(path, digests)

    def finish(self, part: Path, name: str, digests: Digests, tally: Tally = NOTHING, fates: Fates = NO_FATES) -> None:
        """Note what is complete."""
        self._whole.append((part, name, digests, tally, fates))

    def release(self, plan: Plan, threads: int) -> None:
        """Verify the one shard of the plan, of each output, and finish it. Raises StorageError."""
        if not self._whole:
            return
        for part, name, *_ in self._whole:
            make_directory((self.work / name).parent)
            part.rename(self.work / name)
        verify_outputs(dataclasses.replace(plan, single_file=True), self.work, threads)
        for part, name, digests, tally, fates in self._whole:
            (self.work / name).rename(part)
            self._stage.finish(part, name, digests, tally, fates)
