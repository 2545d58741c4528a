"""Runs a plan: cuts it into jobs, hands them to threads, writes their results at known offsets.

A job is a block of one edited tensor, or a run of bytes that is copied. Threads take jobs from one shared
iterator, so few exist at once. torch runs each on one thread: the result does not depend on their number.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import torch

from adaptertool.blocks import DTYPES, Block, Chain, Workspace, compute
from adaptertool.files.publish import make_directory
from adaptertool.files.reader import Inputs
from adaptertool.files.writer import COPY_CHUNK, OutputFile, copy_range
from adaptertool.plan import block_rows, matrix, verbatim
from adaptertool.spec import Output, Plan, Ref, Shard, Step

Progress = Callable[[int], None]  # told the bytes just written
Job = Callable[[Workspace], None]


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Each of our threads is to use one core; torch's own setting is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(slots=True)
class Run:
    """What all jobs share."""

    inputs: Inputs
    progress: Progress
    stop: threading.Event = field(default_factory=threading.Event)


def run_plan(plan: Plan, folder: Path, inputs: Inputs, threads: int, progress: Progress) -> None:
    """Write all outputs of `plan` below `folder`. Raises the first error of any job; the rest then stop."""
    run = Run(inputs, progress)
    roots = [folder / output.folder for output in plan.outputs]
    for root in roots:
        make_directory(root)
    with (
        one_torch_thread(),
        ThreadPoolExecutor(threads, thread_name_prefix="adaptertool") as workers,
        ThreadPoolExecutor(1, thread_name_prefix="adaptertool-finish") as finisher,
    ):
        finishing: list[Future[None]] = []
        workspaces = [Workspace() for _ in range(threads)]
        try:
            for shard in plan.shards:
                finishing.append(_run_shard(run, shard, plan.outputs, roots, workers, finisher, workspaces))
            _all_done(run, finishing)
            _copy_assets(run, plan, roots)
        except BaseException:
            run.stop.set()
            raise


def _run_shard(
    run: Run,
    shard: Shard,
    outputs: Sequence[Output],
    roots: Sequence[Path],
    workers: ThreadPoolExecutor,
    finisher: ThreadPoolExecutor,
    workspaces: Sequence[Workspace],
) -> Future[None]:
    """Compute one shard of every output; their fsync then runs beside the next shard."""
    with contextlib.ExitStack() as opened:
        files = []
        for root in roots:
            files.append(OutputFile(root / shard.name, shard.size))
            opened.callback(files[-1].close)
        jobs = _Shared(_jobs(run, shard, outputs, files))
        _all_done(run, [workers.submit(_drain, run, jobs, workspace) for workspace in workspaces])
        opened.pop_all()
    run.inputs.release(shard.source)
    return finisher.submit(_finish, files)


def _finish(files: Sequence[OutputFile]) -> None:
    with contextlib.ExitStack() as rest:
        for file in files:
            rest.callback(file.close)
        for file in files:
            file.finish()


def _all_done(run: Run, futures: Sequence[Future[None]]) -> None:
    """Wait for all, then raise the first error. On Ctrl-C too, all threads stop before files are closed."""
    try:
        wait(futures)
    except BaseException:
        run.stop.set()
        wait(futures)
        raise
    for future in futures:
        future.result()


class _Shared:
    """An iterator that several threads draw from: jobs are made when they are taken, so few exist at once."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs, self._lock = jobs, threading.Lock()

    def take(self) -> Job | None:
        with self._lock:
            return next(self._jobs, None)


def _drain(run: Run, jobs: _Shared, workspace: Workspace) -> None:
    try:
        while not run.stop.is_set() and (job := jobs.take()) is not None:
            job(workspace)
    except BaseException:
        run.stop.set()
        raise


def _jobs(run: Run, shard: Shard, outputs: Sequence[Output], files: Sequence[OutputFile]) -> Iterator[Job]:
    """The jobs of one shard in order of offset. Neighbouring copies from one file become one run of bytes."""
    begin, end = (
        0,
        shard.data_start,
    )  # bytes to copy and not yet handed out: the header, then untouched tensors
    for step in shard.steps:
        offset, size = step.base.offset, step.base.spec.nbytes
        sources = [verbatim(step, output.alpha) for output in outputs]
        if any(source is not step.base for source in sources):
            yield from _copies(run, shard.source, begin, begin, end - begin, files)
            yield from _edit_jobs(run, step, outputs, files, sources)
            begin = offset + size
        end = offset + size
    yield from _copies(run, shard.source, begin, begin, end - begin, files)


def _copies(run: Run, source: Path, offset: int, target: int, size: int, files: Sequence[OutputFile]) -> Iterator[Job]:
    """Copy in chunks, each to all outputs before the next, so that the disk is read once."""

    for at in range(0, size, COPY_CHUNK):
        length = min(COPY_CHUNK, size - at)
        places = [(file, target + at) for file in files]
        yield functools.partial(_copy, run, source, offset + at, length, places)


def _copy(
    run: Run, source: Path, offset: int, size: int, places: Sequence[tuple[OutputFile, int]], _: Workspace
) -> None:
    copy_range(run.inputs.get(source), offset, size, places)
    run.progress(size * len(places))


def _edit_jobs(
    run: Run,
    step: Step,
    outputs: Sequence[Output],
    files: Sequence[OutputFile],
    sources: Sequence[Ref | None],
) -> Iterator[Job]:
    computed = []
    for output, file, source in zip(outputs, files, sources, strict=True):
        if source is None:
            computed.append((file, output.alpha))
        else:
            yield from _copies(run, source.path, source.offset, step.base.offset, source.spec.nbytes, [file])
    if computed:
        chain = Chain(run.inputs, step)
        rows, columns = matrix(step)
        for first in range(0, rows, block_rows(columns)):
            block = Block(step, first, min(rows, first + block_rows(columns)), columns, chain)
            yield functools.partial(_edit, run, block, computed)


def _edit(run: Run, block: Block, outputs: Sequence[tuple[OutputFile, float]], space: Workspace) -> None:
    offset = block.step.base.offset + block.start * DTYPES[block.step.base.spec.dtype].itemsize
    results = compute(run.inputs, block, [alpha for _, alpha in outputs], space)
    for (file, _), data in zip(outputs, results, strict=True):
        file.write(offset, data)
        run.progress(len(data))


def _copy_assets(run: Run, plan: Plan, roots: Sequence[Path]) -> None:
    for asset in plan.assets:
        with contextlib.ExitStack() as opened:
            files = []
            for root in roots:
                make_directory((root / asset.name).parent)
                files.append(OutputFile(root / asset.name, asset.size))
                opened.callback(files[-1].close)
            for job in _copies(run, asset.source, 0, 0, asset.size, files):
                job(Workspace())
            _finish(files)
        run.inputs.release(asset.source)
