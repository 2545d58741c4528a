"""Runs a plan: cuts it into jobs, hands them to threads, writes their results at known offsets.

A job is a block of one edited tensor, or a run of bytes that is copied. Threads take jobs from one shared
iterator, so few exist at once. Products run on one thread each: the result does not depend on their number.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from adaptertool.arithmetic.stretch import Stretch
from adaptertool.arithmetic.verbatim import verbatim
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.budget import bytes_to_write
from adaptertool.engine.crew import Crew, Progress, Run, aligned, copies, only_hashed, write
from adaptertool.engine.edits import edit_jobs
from adaptertool.engine.forms import Forms, forms_of
from adaptertool.engine.pool import Cores, Job, Pool, Shared, all_done, drain, one_core_each
from adaptertool.engine.reads import copied_whole, to_hash, unread
from adaptertool.engine.stretches import make, with_stretches
from adaptertool.files.direct import worth_while
from adaptertool.files.hashing import DEFAULT
from adaptertool.files.reader import Inputs
from adaptertool.files.stage import Stage
from adaptertool.files.writer import OutputFile
from adaptertool.spec.choices import EXACT
from adaptertool.spec.plan import Asset, Output, Plan, Shard, Step
from adaptertool.spec.tally import Tally, fates_by_family, total

Hashed = tuple[Sequence[Path], Sequence[Path]]  # large files, hashed as they are read; others
_WAITING = 2  # threads more, where each waits while the disk takes what it writes: the disk is to have no rest
MakeJobs = Callable[[Sequence[OutputFile]], Iterator[Job]]  # one open file per output


def run_plan(
    plan: Plan,
    stage: Stage,
    inputs: Inputs,
    threads: int,
    progress: Progress,
    hashed: Hashed | None = None,
    forms: Forms | None = None,
) -> int:
    """Write all outputs of `plan` that are not finished; returns how many threads the system gave us for it.

    hashed: the inputs to hash as `reads.to_hash` has them, which is asked where None; forms: of the plan, if known

    Raises the first error of any job; the rest then stop.
    """
    # Other hashes are made from first to last, and may read back what was written
    direct = stage.hashes == DEFAULT and worth_while(stage.work, bytes_to_write(plan))
    cores, more = Cores(threads), _WAITING if direct else 0
    away = cores.away if direct else None
    with one_core_each(), Pool(threads + more) as workers, Pool(1, "adaptertool-finish") as finisher:
        folders, spaces = [output.folder for output in plan.outputs], [Workspace() for _ in range(workers.size)]
        base = frozenset(() if plan.as_adapter else plan.files[0].values())
        exact = plan.precision == EXACT
        stop = inputs.stopped
        crew = Crew(inputs, progress, stage, folders, workers, finisher, spaces, stop, exact, base, cores, away)
        try:
            streamed, aside = to_hash(plan) if hashed is None else hashed
            for path in streamed:
                inputs.stream(path)
            finishing = deque([finisher.submit(_hash, crew, aside)])
            for source, name, size, jobs, same in _files(crew, plan, forms or forms_of(plan)):
                finishing.append(_write_file(crew, source, name, size, jobs, same))
                while len(finishing) * len(folders) > max(stage.unfinished, len(folders)):
                    all_done(crew.stop, [finishing.popleft()])
            finishing.append(finisher.submit(_hash, crew, streamed))
            all_done(crew.stop, finishing)
        except BaseException:
            crew.stop.set()
            raise
    return min(workers.size, threads)


def _files(crew: Crew, plan: Plan, forms: Forms) -> Iterator[tuple[Path, str, int, MakeJobs, int | None]]:
    """What `_write_file` wants to know of each shard and asset."""
    members = forms.members(plan)
    for shard in plan.shards:
        own = itertools.islice(members, len(shard.steps))
        jobs = functools.partial(_shard_jobs, crew, shard, list(own), plan.outputs)
        yield shard.source, shard.name, shard.size, jobs, copied_whole(shard, plan.outputs)
    for asset in plan.assets:
        jobs = functools.partial(_asset_jobs, crew, asset)
        yield asset.source, asset.name, asset.size, jobs, 0 if asset.content is None else None


def _write_file(crew: Crew, source: Path, name: str, size: int, make_jobs: MakeJobs, same: int | None) -> Future[None]:
    """Write one file of every output; what makes it durable then runs beside the next.

    same: the number of an output that has this file of the base as it is, and so its hashes.
    """
    names = [(Path(folder) / name).as_posix() for folder in crew.folders]
    if all(crew.stage.find(name) is not None for name in names):  # by another run
        crew.inputs.digests |= crew.stage.inputs
        if same is not None:
            crew.inputs.digests[source] = crew.stage.finished[names[same]].digests
        crew.progress(size * len(names))
        return crew.finisher.submit(_finish, crew, {})
    with contextlib.ExitStack() as opened:
        files = []
        for own in names:
            part, hashes = crew.stage.part(), crew.stage.hashes
            files.append(OutputFile(crew.stage.work / own, size, part, hashes, away=crew.away))
            opened.callback(files[-1].close)
        jobs = Shared(make_jobs(files))
        all_done(crew.stop, [crew.workers.submit(_work, crew, jobs, workspace) for workspace in crew.workspaces])
        opened.pop_all()
    return crew.finisher.submit(_finish, crew, dict(zip(names, files, strict=True)), source, same)


def _work(crew: Crew, jobs: Shared, workspace: Workspace) -> None:
    with crew.cores:
        drain(crew.stop, jobs, workspace)


def _finish(crew: Crew, files: Mapping[str, OutputFile], source: Path | None = None, same: int | None = None) -> None:
    with contextlib.ExitStack() as opened:
        for file in files.values():
            opened.callback(file.close)
        digests = [file.digests for file in files.values()]
        if source is not None and same is not None:
            crew.inputs.digests[source] = digests[same]
        _hash(crew, crew.inputs.complete())
        for (name, file), own in zip(files.items(), digests, strict=True):
            file.finish()
            crew.stage.finish(file.part, name, own, total(file.tallies), fates_by_family(file.fates))


def _hash(crew: Crew, paths: Sequence[Path]) -> None:
    """Hash input files, those that were read by what was read, and note it for a run that goes on."""
    for path in paths:
        if path not in crew.inputs.digests:
            crew.stage.has_read(path, crew.inputs.hash(path))


def _shard_jobs(
    crew: Crew,
    shard: Shard,
    members: Sequence[tuple[Step, int]],
    outputs: Sequence[Output],
    files: Sequence[OutputFile],
) -> Iterator[Job]:
    """The jobs of one shard in order of offset. Neighbouring copies from one file become one run of bytes.

    members: its steps, each with the number of its form
    """
    # Bytes to copy and not yet handed out: the header, then untouched tensors
    run = Run(shard.source, 0, 0, shard.data_start)
    if shard.header is not None:
        run = Run(shard.source, 0, shard.data_start, 0)
        for offset, size in unread(shard):
            yield from only_hashed(crew, shard.source, offset, size)
        yield functools.partial(write, crew, shard.header, files)
    kept = {step.spec.name: step.offset for step in shard.steps if step.keeps is not None}
    for step in with_stretches(members, [output.alpha for output in outputs], crew.base):
        run = yield from aligned(crew, shard, run, step.target if isinstance(step, Stretch) else step.offset, files)
        if isinstance(step, Stretch):
            yield from copies(crew, run, files)
            yield functools.partial(make, crew, step, outputs, files)
            run = Run(step.ref.path, step.ref.offset + step.size, step.target + step.size, 0)
            continue
        if crew.base and step.base.path not in crew.base:  # of another size than the base's
            for file in files:
                file.tallies.append(Tally(changed=step.spec.numel))
        own = Run(step.stored.path, step.stored.offset, step.offset, step.spec.nbytes)
        sources = [verbatim(step, step.at(output.alpha)) for output in outputs]
        if all(source is step.stored for source in sources):
            if (longer := run.then(own)) is not None:
                run = longer
                continue
            yield from copies(crew, run, files)
            run = own
        else:
            yield from copies(crew, run, files)
            if not crew.base and not any(
                source is None or source is step.stored for source in sources
            ):  # nobody reads it
                yield from only_hashed(crew, own.path, own.offset, step.stored.spec.nbytes)
            yield from edit_jobs(crew, step, outputs, files, sources, kept)
            run = Run(own.path, own.offset + step.stored.spec.nbytes, step.offset + own.size, 0)
    run = yield from aligned(crew, shard, run, shard.size, files)
    yield from copies(crew, run, files)


def _asset_jobs(crew: Crew, asset: Asset, files: Sequence[OutputFile]) -> Iterator[Job]:
    if asset.content is not None:
        yield functools.partial(write, crew, asset.content, files)
    else:
        yield from copies(crew, Run(asset.source, 0, 0, asset.size), files)
