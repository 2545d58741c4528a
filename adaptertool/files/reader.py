"""Reading of input files, in whatever store they lie: the files of a run, which must stay what they were."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptertool.errors import InputError, Interrupted, StorageError
from adaptertool.files import LOCAL, store_of
from adaptertool.files.hashing import DEFAULT, Digests, Hasher, InOrder, digests_of, hasher
from adaptertool.files.side_by_side import each
from adaptertool.files.store import BROKEN, FILE, FOLDER, InputFile
from adaptertool.spec.tensors import Ref, Stamp, files_of, is_still

_CHUNK = 16 << 20  # bytes that are compared at once
_BESIDE = 4096  # bytes between two parts that are read with them: another call would take longer
_MOST_OPEN = 64  # input files that are kept open at the same time


def open_input(path: Path) -> InputFile:
    """Open for reading. Raises InputError for what is no file, StorageError."""
    return store_of(path).open(path)


def exists(path: Path) -> bool:
    """Whether there is anything; a link to nothing is nothing."""
    return store_of(path).look(path) not in (None, BROKEN)


def is_folder(path: Path) -> bool:
    return store_of(path).look(path) == FOLDER


def is_file(path: Path) -> bool:
    return store_of(path).look(path) == FILE


def names_in(folder: Path, pattern: str) -> list[str]:
    """What lies in a folder under names like that, in order. Raises StorageError."""
    names = [entry.name for entry in store_of(folder).entries(folder)]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and its folders. Raises StorageError."""
    for entry in store_of(folder).entries(folder):
        if entry.is_folder:
            yield from files_below(folder / entry.name)
        else:
            yield folder / entry.name


def stamp_of(path: Path) -> Stamp:
    with open_input(path) as file:
        return file.stamp


def read_into(file: InputFile, offset: int, view: memoryview) -> None:
    """Fill `view` with the bytes from `offset` on. Raises InputError for a file that ends early, and StorageError."""
    done = 0
    while done < len(view):
        try:
            count = file.read_at(offset + done, view[done:])
        except OSError as error:
            raise StorageError(f"reading {file.path} failed: {error.strerror}") from error
        if count == 0:
            raise InputError(f"{file.path} ends at byte {offset + done:,}; it was shortened while it was read")
        done += count


def read_exact(file: InputFile, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    read_into(file, offset, memoryview(buffer))
    return bytes(buffer)


def digests_in(path: Path, hashes: tuple[str, ...], progress: Callable[[int], None] = lambda _: None) -> Digests:
    """The hashes of a whole file, wherever it lies. Raises InputError where it is gone, and StorageError."""
    if store_of(path) is LOCAL:
        return digests_of(path, hashes, progress)
    with open_input(path) as file:

        def read(offset: int, view: memoryview) -> None:
            read_into(file, offset, view)
            progress(len(view))

        return InOrder(file.size, read, hashes).digests()


def same_bytes(one: Ref, other: Ref) -> bool:
    """Whether two tensors of one size are stored as the same bytes."""
    with open_input(one.path) as first, open_input(other.path) as second:
        return all(
            read_exact(first, one.offset + at, size) == read_exact(second, other.offset + at, size)
            for at in range(0, one.spec.nbytes, _CHUNK)
            for size in (min(_CHUNK, one.spec.nbytes - at),)
        )


class Inputs:
    """The input files of a run, some of them open. They must be, to the end, the files that were planned with."""

    def __init__(self, stamps: Mapping[Path, Stamp], hashes: tuple[str, ...] = DEFAULT) -> None:
        self._open: dict[Path, InputFile] = {}  # those that were used the longest ago first
        self._users: Counter[Path] = Counter()
        self._stamps, self._hashes = stamps, hashes
        self._lock = threading.Lock()
        self._streams: dict[Path, Hasher] = {}
        self.stopped = threading.Event()  # nothing more is to be hashed
        self.digests: dict[Path, Digests] = {}  # of those that are known
        self.kept: dict[Hashable, Any] = {}  # what those who read keep of them, for others of this run
        self.kept_lock = threading.Lock()

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        for path in tuple(self._open):
            self._close(path)

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[InputFile]:
        """The file, open as long as this lasts; and afterwards, until many others were."""
        with self._lock:
            file = self._open.pop(path, None) or self._opened(path)
            self._open[path] = file
            self._users[path] += 1
        try:
            yield file
        finally:
            with self._lock:
                self._users[path] -= 1
                if (more := len(self._open) - _MOST_OPEN) > 0:
                    for idle in [path for path in self._open if not self._users[path]][:more]:
                        self._close(idle)

    def _opened(self, path: Path) -> InputFile:
        file = open_input(path)
        try:
            self._check(path, file.stamp)
        except InputError:
            file.close()
            raise
        return file

    def _close(self, path: Path) -> None:
        self._open.pop(path).close()

    def read_into(self, path: Path, offset: int, view: memoryview) -> None:
        """Read as `read_into` of this file does, and hash what is read where the file is to be."""
        with self.opened(path) as file:
            read_into(file, offset, view)
        if (hashed := self.hasher(path)) is not None:
            hashed.has(offset, view)

    def read(self, path: Path, offset: int, size: int) -> bytes:
        buffer = bytearray(size)
        self.read_into(path, offset, memoryview(buffer))
        return bytes(buffer)

    def read_parts(self, refs: Sequence[Ref]) -> tuple[memoryview, npt.NDArray[np.int64]]:
        """The bytes of many small tensors, and where among them each begins. What lies side by side in a file, or
        nearly so, is read at once."""
        paths, files = files_of(refs)
        file, offsets = np.array(files, np.int64), np.array([ref.offset for ref in refs], np.int64)
        ends = offsets + np.array([ref.spec.nbytes for ref in refs], np.int64)
        begins, reads, total = np.empty_like(offsets), list[tuple[Path, int, int]](), 0
        for number, path in enumerate(paths):
            own = np.flatnonzero(file == number)
            own = own[np.argsort(offsets[own])]
            begin, end = offsets[own], np.maximum.accumulate(ends[own])
            apart = np.flatnonzero(begin[1:] - end[:-1] > _BESIDE) + 1
            for first, last in itertools.pairwise([0, *apart.tolist(), len(own)]):
                start, stop = int(begin[first]), int(end[last - 1])
                begins[own[first:last]] = begin[first:last] + (total - start)
                reads.append((path, start, stop))
                total += stop - start
        buffer, at = memoryview(bytearray(total)), 0
        for path, start, stop in reads:
            self.read_into(path, start, buffer[at : at + stop - start])
            at += stop - start
        return buffer, begins

    def stream(self, path: Path) -> None:
        """Hash this file from now on, as it is read."""
        if path not in self.digests:

            def read(offset: int, view: memoryview) -> None:
                if self.stopped.is_set():
                    raise Interrupted("interrupted; nothing was published")
                with self.opened(path) as file:
                    read_into(file, offset, view)

            self._streams[path] = hasher(self._stamps[path][2], read, self._hashes)

    def hasher(self, path: Path) -> Hasher | None:
        """What is to be told of the bytes of a file that are read; None where it is not hashed."""
        return self._streams.get(path)

    def hash(self, path: Path) -> Digests:
        """The digests of a file: of what was read, and what was not is read now."""
        if path not in self.digests:
            if path not in self._streams:
                self.stream(path)
            self.digests[path] = self._streams.pop(path).digests()
        return self.digests[path]

    def complete(self) -> list[Path]:
        """The files that are hashed as they are read, and of which all was."""
        return [path for path, stream in self._streams.items() if stream.complete()]

    def check_unchanged(self) -> None:
        """Raise if an input is no longer the file that was planned with: the output would be a silent mixture."""
        paths = list(self._stamps)
        for path, stamp in zip(paths, each(stamp_of, paths), strict=True):
            self._check(path, stamp)

    def _check(self, path: Path, stamp: Stamp) -> None:
        if not is_still(stamp, self._stamps[path]):
            raise InputError(f"{path} changed since it was first read; nothing was published, run again")
