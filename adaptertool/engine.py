"""Runs a plan: reads blocks of rows, applies the edits in float64, rounds once, writes at known offsets.

Precision: the chain of all edits to a tensor is evaluated in float64 without intermediate rounding to the
stored dtype, and the result is rounded once, correctly (`numerics.rounding`). Where the value is exactly 0
and the base was −0.0, the base's bits stay. NaN and infinity are never written: they are errors.

Threads take jobs from one shared iterator. A job is a block of one edited tensor, or a run of bytes that is
copied. torch runs each of them on one thread, so the result does not depend on their number.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adaptertool.errors import Interrupted, MismatchError, NonFiniteError, shown
from adaptertool.files.publish import sync_tree
from adaptertool.files.reader import Inputs, read_exact, read_into
from adaptertool.files.writer import COPY_CHUNK, OutputFile, copy_range
from adaptertool.kinds import BY_NAME
from adaptertool.numerics.rounding import Rounder
from adaptertool.plan import BLOCK_ELEMENTS, block_rows, matrix, verbatim
from adaptertool.spec import Edit, Output, Plan, Ref, Shard, Step

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_NEGATIVE_ZERO = {2: (np.uint16, 1 << 15), 4: (np.uint32, 1 << 31), 8: (np.uint64, 1 << 63)}

Progress = Callable[[int], None]  # told the bytes just written
Job = Callable[["Workspace"], None]


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


class Workspace:
    """The buffers of one thread, grown to the largest block and then reused."""

    def __init__(self) -> None:
        self._size = 0

    def fit(self, size: int) -> None:
        if size <= self._size:
            return
        self._size = size
        self.stored = torch.empty(size * 8, dtype=torch.uint8)
        self.rounded = torch.empty(size * 8, dtype=torch.uint8)
        self.before, self.after, self.mixed = (torch.empty(size, dtype=torch.float64) for _ in range(3))
        self.round = Rounder(size)


def run_plan(plan: Plan, folder: Path, inputs: Inputs, threads: int, progress: Progress) -> None:
    """Write all outputs of `plan` below `folder`. Raises the first error of any job; the rest then stop."""
    run = Run(inputs, progress)
    roots = [folder / output.folder for output in plan.outputs]
    for root in roots:
        root.mkdir(exist_ok=True)
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
    for root in roots:
        sync_tree(root)


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
        factors = StepFactors(run.inputs, step)
        rows, columns = matrix(step)
        for first in range(0, rows, block_rows(columns)):
            block = Block(step, first, min(rows, first + block_rows(columns)), columns, factors)
            yield functools.partial(_compute, run, block, computed)


class StepFactors:
    """The factors of one tensor's edits: those needed whole are read once, by the first block that asks."""

    def __init__(self, inputs: Inputs, step: Step) -> None:
        self._inputs = inputs
        self._whole: dict[tuple[int, str], Tensor] = {}
        self._lock = threading.Lock()
        self._rows = matrix(step)[0]

    def of(self, number: int, edit: Edit, first: int, last: int) -> Mapping[str, Tensor]:
        """All factors of edit `number`, in float64; those that go by row, for rows first..last only."""
        by_row = BY_NAME[edit.kind].by_row
        return {
            role: self._by_row(ref, first, last) if role in by_row else self._read_whole((number, role), ref)
            for role, ref in edit.factors.items()
        }

    def _by_row(self, ref: Ref, first: int, last: int) -> Tensor:
        columns = ref.spec.numel // self._rows
        return read_tensor(self._inputs, ref, first * columns, last * columns).view(last - first, columns)

    def _read_whole(self, key: tuple[int, str], ref: Ref) -> Tensor:
        with self._lock:
            if key not in self._whole:
                self._whole[key] = read_tensor(self._inputs, ref, 0, ref.spec.numel).view(ref.spec.shape)
            return self._whole[key]


def read_tensor(inputs: Inputs, ref: Ref, first: int, last: int) -> Tensor:
    """Elements first..last of a tensor on disk, flat, as float64 (exact for every dtype computed on)."""
    stored = torch.empty(last - first, dtype=DTYPES[ref.spec.dtype])
    size = stored.element_size()
    read_into(inputs.get(ref.path), ref.offset + first * size, as_bytes(stored))
    return stored.to(torch.float64)


def as_bytes(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data


@dataclass(frozen=True, slots=True)
class Block:
    """Rows first..last of one tensor."""

    step: Step
    first: int
    last: int
    columns: int
    factors: StepFactors

    @property
    def shape(self) -> tuple[int, int]:
        return self.last - self.first, self.columns

    @property
    def numel(self) -> int:
        return (self.last - self.first) * self.columns


def _compute(run: Run, block: Block, files: Sequence[tuple[OutputFile, float]], space: Workspace) -> None:
    """Read a block, make the change, and write before + α·(after − before) for every α."""
    spec = block.step.base.spec
    dtype, numel = DTYPES[spec.dtype], block.numel
    space.fit(numel)
    stored = space.stored[: numel * dtype.itemsize].view(dtype)
    rounded = space.rounded[: numel * dtype.itemsize].view(dtype)
    offset = block.step.base.offset + block.first * block.columns * dtype.itemsize
    read_into(run.inputs.get(block.step.base.path), offset, as_bytes(stored))

    before, after, mixed = space.before[:numel], space.after[:numel], space.mixed[:numel]
    before.copy_(stored)
    after.copy_(before)
    for number, edit in enumerate(block.step.edits):
        factors = block.factors.of(number, edit, block.first, block.last)
        BY_NAME[edit.kind].apply(after.view(block.shape), factors, edit.scale, edit.weight)
    for file, alpha in files:
        value = after
        if alpha != 1:
            torch.sub(after, before, out=mixed)
            value = torch.add(before, mixed, alpha=alpha, out=mixed)
        space.round(value, rounded)
        _keep_negative_zeros(stored, value, rounded)
        _require_finite(block, stored, rounded)
        file.write(offset, as_bytes(rounded))
        run.progress(len(rounded) * rounded.element_size())


def _keep_negative_zeros(stored: Tensor, value: Tensor, rounded: Tensor) -> None:
    """Where nothing was added to −0.0 the sum is +0.0 in IEEE arithmetic, but the base's bits stay."""
    kind, bits = _NEGATIVE_ZERO[stored.element_size()]
    where = torch.from_numpy(np.flatnonzero(stored.view(torch.uint8).numpy().view(kind) == bits))
    if len(where):
        where = where[value[where] == 0]
        rounded[where] = stored[where]


def _require_finite(block: Block, stored: Tensor, rounded: Tensor) -> None:
    low, high = torch.aminmax(rounded)  # both are NaN if one element is
    if torch.isfinite(low) and torch.isfinite(high):
        return
    spec = block.step.base.spec
    where = int(torch.nonzero(~torch.isfinite(rounded))[0])
    row, column = divmod(block.first * block.columns + where, block.columns)
    place = f"{block.step.base.path}: {shown(spec.name)}, element {where if block.columns == 1 else (row, column)}"
    if not torch.isfinite(stored[where]):
        raise NonFiniteError(f"{place}: the base holds {stored[where].item()}; such a tensor cannot be edited")
    raise NonFiniteError(
        f"{place}: the result is beyond the range of {spec.dtype} (largest: {torch.finfo(rounded.dtype).max:g})"
    )


def _copy_assets(run: Run, plan: Plan, roots: Sequence[Path]) -> None:
    for asset in plan.assets:
        files = []
        for root in roots:
            path = root / asset.name
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append(OutputFile(path, asset.size))
        for job in _copies(run, asset.source, 0, 0, asset.size, files):
            if run.stop.is_set():
                raise Interrupted("stopped")
            job(Workspace())
        _finish(files)
        run.inputs.release(asset.source)


def require_finite_factors(plan: Plan, inputs: Inputs) -> None:
    """Read every factor once, before anything is written. Raises NonFiniteError for NaN or infinity."""
    for ref in _unique(factor for edit in _edits(plan) for factor in edit.factors.values()):
        for first in range(0, ref.spec.numel, BLOCK_ELEMENTS):
            part = read_tensor(inputs, ref, first, min(ref.spec.numel, first + BLOCK_ELEMENTS))
            if not torch.isfinite(part).all():
                where = first + int(torch.nonzero(~torch.isfinite(part))[0])
                raise NonFiniteError(
                    f"{ref.path}: {shown(ref.spec.name)} holds {part[where - first].item()} at element {where:,}; "
                    "the adapter is damaged, or its training diverged"
                )


def _edits(plan: Plan) -> Iterator[Edit]:
    return (edit for shard in plan.shards for step in shard.steps for edit in step.edits)


def _unique(refs: Iterable[Ref]) -> Iterable[Ref]:
    return {(ref.path, ref.offset): ref for ref in refs}.values()


def require_equal(plan: Plan, inputs: Inputs) -> None:
    """Integers and codes have no values between: such tensors must be the same in both checkpoints."""
    for ours, theirs in plan.equal:
        for at in range(0, ours.spec.nbytes, COPY_CHUNK):
            size = min(COPY_CHUNK, ours.spec.nbytes - at)
            pair = [read_exact(inputs.get(ref.path), ref.offset + at, size) for ref in (ours, theirs)]
            if pair[0] != pair[1]:
                raise MismatchError(
                    f"{shown(ours.spec.name)} ({ours.spec}) differs between {ours.path} and {theirs.path}; "
                    f"tensors of dtype {ours.spec.dtype} cannot be interpolated"
                )
