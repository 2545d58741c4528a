"""The threads of a run, what they share, and the jobs that copy bytes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaptertool.arithmetic.survival import changed
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs.tensors import held_as, read_stored
from adaptertool.engine.pool import Cores, Job, Pool
from adaptertool.files.direct import Away
from adaptertool.files.reader import Inputs
from adaptertool.files.stage import Stage
from adaptertool.files.writer import AT_ONCE, COPY_CHUNK, OutputFile, copy_range
from adaptertool.spec.plan import Shard
from adaptertool.spec.tally import Tally
from adaptertool.spec.tensors import Ref

Progress = Callable[[int], None]  # told the bytes just written


@dataclass(slots=True)
class Crew:
    """The threads of a run, and what they share. Finishing (fsync) of one file goes on beside the next."""

    inputs: Inputs
    progress: Progress
    stage: Stage
    folders: Sequence[str]  # of the outputs, within it
    workers: Pool
    finisher: Pool
    workspaces: Sequence[Workspace]
    stop: threading.Event
    exact: bool
    base: frozenset[Path]  # files of the base; none where no checkpoint is made, and nothing is counted
    cores: Cores
    away: Away | None  # where outputs are written past what the system keeps of files


@dataclass(frozen=True, slots=True)
class Run:
    """`size` bytes to copy from `offset` of a file to `target` in the outputs."""

    path: Path
    offset: int
    target: int
    size: int

    def then(self, other: Run) -> Run | None:
        """This run and the other as one; None where the other does not follow on this."""
        if (self.path, self.offset + self.size, self.target + self.size) != (other.path, other.offset, other.target):
            return None
        return Run(self.path, self.offset, self.target, self.size + other.size)


def write(crew: Crew, content: bytes, files: Sequence[OutputFile], _: Workspace, *, at: int = 0) -> None:
    for file in files:
        file.write(at, memoryview(content))
        crew.progress(len(content))


def copies(crew: Crew, run: Run, files: Sequence[OutputFile]) -> Iterator[Job]:
    """Copy in chunks, each to all outputs before the next, so that the disk is read once."""
    for offset, size in chunks(run.offset, run.size, COPY_CHUNK):
        places = [(file, run.target + offset - run.offset) for file in files]
        yield functools.partial(_copy, crew, run.path, offset, size, places)


def aligned(crew: Crew, shard: Shard, run: Run, until: int, files: Sequence[OutputFile]) -> Generator[Job, None, Run]:
    """Write what aligns tensors in GGUF, between the run and the next tensor, or the end of the file: the bytes of the
    base, or zeros under another header. Returns the run that goes on there."""
    begin = run.target + run.size
    if begin == until:
        return run
    if shard.header is not None:
        yield from copies(crew, run, files)
        yield functools.partial(write, crew, bytes(until - begin), files, at=begin)
        return Run(shard.source, 0, until, 0)
    hole = Run(shard.source, begin, begin, until - begin)
    if (longer := run.then(hole)) is None:
        yield from copies(crew, run, files)
    return longer or hole


def chunks(offset: int, size: int, step: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of the parts of a range of a file. They end at multiples of `step`, where blocks end too."""
    end = offset + size
    while offset < end:
        size = min(step - offset % step, end - offset)
        yield offset, size
        offset += size


def _copy(
    crew: Crew, source: Path, offset: int, size: int, places: Sequence[tuple[OutputFile, int]], space: Workspace
) -> None:
    copy_range(crew.inputs, source, offset, size, places, space.copied)
    crew.progress(size * len(places))


def only_hashed(crew: Crew, path: Path, offset: int, size: int) -> Iterator[Job]:
    """Read what nobody copies or computes with, where the hash of the file needs it."""
    if crew.inputs.hasher(path) is not None:
        for at, length in chunks(offset, size, AT_ONCE):
            yield functools.partial(_read, crew, path, at, length)


def _read(crew: Crew, path: Path, offset: int, size: int, space: Workspace) -> None:
    crew.inputs.read_into(path, offset, space.copied[:size])


def replacements(crew: Crew, base: Ref, source: Ref, target: int, file: OutputFile) -> Iterator[Job]:
    """Copy a tensor that takes the place of one of the base, and count what differs."""
    for at in range(0, source.spec.nbytes, AT_ONCE):
        length = min(AT_ONCE, source.spec.nbytes - at)
        yield functools.partial(_replace, crew, base, source, (at, length), (file, target + at))


def _replace(
    crew: Crew, base: Ref, source: Ref, part: tuple[int, int], place: tuple[OutputFile, int], space: Workspace
) -> None:
    (at, length), dtype = part, source.spec.dtype
    copied = space.copied[:length]
    copy_range(crew.inputs, source.path, source.offset + at, length, [place], copied)
    after = np.frombuffer(copied, held_as(dtype))
    first = at // after.itemsize
    before = read_stored(crew.inputs, base, first, first + len(after))
    place[0].tallies.append(Tally(changed(before, after, dtype, base.spec.dtype)))
    crew.progress(length)
