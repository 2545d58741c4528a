"""Writes the tensors of an adapter one after another, as threads make them: memory holds a few layers at a time.

How large they are may be known only when they are made (a rank that an energy decides), so the header, for which room
is left, is written last.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from adaptertool.codecs.tensors import as_bytes, read_stored
from adaptertool.engine.pool import Pool, one_core_each
from adaptertool.errors import InternalError
from adaptertool.files.hashing import Digests
from adaptertool.files.header import build_header
from adaptertool.files.reader import Inputs
from adaptertool.files.writer import AT_ONCE, COPY_CHUNK, OutputFile, copy_range
from adaptertool.interrupts import LOOK_EVERY, look
from adaptertool.numerics.rounding import standard_arithmetic
from adaptertool.spec.portable import Container
from adaptertool.spec.tensors import Ref, TensorSpec

Outcome = TypeVar("Outcome")
SAFETENSORS = Container(build_header)
_AHEAD = 2  # jobs for each thread that are begun before their turn to be written


class Made(NamedTuple):
    """A tensor of the output, or the next part of it: bytes that were computed, or bytes of an input."""

    spec: TensorSpec  # of the whole tensor
    data: memoryview | Ref


Job = Callable[[], tuple[Sequence[Made], Outcome]]  # makes tensors, and says something about them


def results(jobs: Iterable[Job[Outcome]], threads: int) -> Generator[tuple[Sequence[Made], Outcome]]:
    """What the jobs return, in their order. Raises the first error of any; the rest are then not begun."""
    jobs = iter(jobs)
    waiting: deque[Future[tuple[Sequence[Made], Outcome]]] = deque()
    with one_core_each(), Pool(threads) as workers:
        try:
            while True:
                for job in itertools.islice(jobs, threads * _AHEAD - len(waiting)):
                    waiting.append(workers.submit(_done, job))
                if not waiting:
                    return
                yield _result(waiting[0])
                waiting.popleft()
        finally:
            workers.cancel()


def _done(job: Job[Outcome]) -> tuple[Sequence[Made], Outcome]:
    standard_arithmetic()  # a thread has its own, from the one that started it
    with np.errstate(all="ignore"):  # what is not finite is looked for
        return job()


def _result(future: Future[tuple[Sequence[Made], Outcome]]) -> tuple[Sequence[Made], Outcome]:
    while not future.done():
        look()
        with contextlib.suppress(TimeoutError):
            future.exception(LOOK_EVERY)
    look()
    return future.result()


def write_tensors(
    path: Path,
    largest: Sequence[TensorSpec],
    metadata: Mapping[str, str],
    jobs: Iterable[Job[Outcome]],
    inputs: Inputs,
    *,
    threads: int,
    progress: Callable[[int], None],
    reserved: int | None = None,
    container: Container = SAFETENSORS,
) -> tuple[list[Outcome], int, Digests]:
    """Write a file of what `jobs` make, in their order: wide dtypes first, so that all are aligned.

    largest: the tensors, none smaller than it will be, in the same order
    reserved: bytes of disk to have ready for them, where that is not as many as `largest` says
    container: what kind of file
    Returns what the jobs said, and the size and the hashes of the file.

    Raises InternalError where what the jobs made has another size than they said.
    """
    buffer = memoryview(bytearray(AT_ONCE))
    room = len(container.header(largest, metadata, 0))
    at, specs, said = room, list[TensorSpec](), list[Outcome]()
    most = room + container.bytes_of(largest)
    size = most if reserved is None else room + reserved
    with (
        contextlib.closing(OutputFile(path, size, most=most)) as file,
        contextlib.closing(results(jobs, threads)) as made,
    ):
        for parts, outcome in made:
            for spec, data in parts:
                if not specs or specs[-1] != spec:
                    at += _fill(file, at, room + container.bytes_of(specs))
                    specs.append(spec)
                at += _write(file, at, data, inputs, buffer, progress)
            said.append(outcome)
        at += _fill(file, at, room + container.bytes_of(specs))
        file.shorten(at)
        if container.seal is not None:
            metadata = {**metadata, **container.seal(path, room)}
        header = container.header(specs, metadata, room)
        if len(header) != room or at - room != container.bytes_of(specs):
            raise InternalError(f"{path}: {at - room:,} bytes were made for {len(specs):,} tensors of another size")
        file.write(0, memoryview(header))
        progress(room)
        digests = file.digests
        file.finish()
        return said, at, digests


def _fill(file: OutputFile, at: int, end: int) -> int:
    """Zeros up to `end`, where that is further than `at`; returns how many."""
    if count := max(end - at, 0):
        file.write(at, memoryview(bytes(count)))
    return count


def _write(
    file: OutputFile,
    at: int,
    data: memoryview | Ref,
    inputs: Inputs,
    buffer: memoryview,
    progress: Callable[[int], None],
) -> int:
    """Write data in chunks."""
    if isinstance(data, Ref) and data.made is not None:
        data = as_bytes(read_stored(inputs, data, 0, data.spec.numel))
    size = data.spec.nbytes if isinstance(data, Ref) else len(data)
    for begin in range(0, size, COPY_CHUNK):
        count = min(COPY_CHUNK, size - begin)
        if isinstance(data, Ref):
            copy_range(inputs, data.path, data.offset + begin, count, [(file, at + begin)], buffer)
        else:
            file.write(at + begin, data[begin : begin + count])
        progress(count)
    return size
