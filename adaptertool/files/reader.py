"""Reading by pread on validated offsets, never by mmap.

A mapped file that is truncated while it is read kills the process (SIGBUS), and mapping a checkpoint makes
resident memory grow with the file; pread gives an error and keeps memory flat.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError, StorageError
from adaptertool.spec import Ref, Stamp

_CHUNK = 16 << 20


@dataclass(frozen=True, slots=True)
class InputFile:
    """An open regular file and what identified it when it was opened."""

    path: Path
    fd: int
    size: int
    stamp: Stamp

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def open_input(path: Path) -> InputFile:
    """Open for reading. FIFOs and devices are refused, and opening one does not hang (O_NONBLOCK)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _opening_error(path, error) from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise InputError(f"{path} is not a regular file")
    stamp = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    return InputFile(path, fd, info.st_size, stamp)


def stamp_of(path: Path) -> Stamp:
    with open_input(path) as file:
        return file.stamp


def _opening_error(path: Path, error: OSError) -> InputError | StorageError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputError(f"{path} does not exist")
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO):
        return InputError(f"{path} cannot be opened: {error.strerror}")
    return StorageError(f"{path} cannot be opened: {error.strerror}")


def read_into(file: InputFile, offset: int, view: memoryview) -> None:
    """Fill `view` with the bytes from `offset` on; a file that ends early is an error."""
    done = 0
    while done < len(view):
        try:
            count = os.preadv(file.fd, [view[done:]], offset + done)
        except OSError as error:
            raise StorageError(f"reading {file.path} failed: {error.strerror}") from error
        if count == 0:
            raise InputError(f"{file.path} ends at byte {offset + done:,}; it was shortened while it was read")
        done += count


def read_exact(file: InputFile, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    read_into(file, offset, memoryview(buffer))
    return bytes(buffer)


def same_bytes(one: Ref, other: Ref) -> bool:
    """Whether two tensors of one size are stored as the same bytes."""
    with open_input(one.path) as first, open_input(other.path) as second:
        return all(
            read_exact(first, one.offset + at, size) == read_exact(second, other.offset + at, size)
            for at in range(0, one.spec.nbytes, _CHUNK)
            for size in (min(_CHUNK, one.spec.nbytes - at),)
        )


class Inputs:
    """The input files of a run, each opened once. They must be, to the end, the files that were planned with."""

    def __init__(self, stamps: Mapping[Path, Stamp]) -> None:
        self._open: dict[Path, InputFile] = {}
        self._stamps = stamps
        self._lock = threading.Lock()
        self.kept: dict[Hashable, Any] = {}  # what those who read keep of them, for others of this run
        self.kept_lock = threading.Lock()

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        for path in tuple(self._open):
            self.release(path)

    def get(self, path: Path) -> InputFile:
        with self._lock:
            file = self._open.get(path)
            if file is None:
                file = self._open[path] = open_input(path)
                self._check(path, file.stamp)
            return file

    def release(self, path: Path) -> None:
        """Close `path`; a later `get` opens it again."""
        with self._lock:
            file = self._open.pop(path, None)
        if file is not None:
            os.close(file.fd)

    def check_unchanged(self) -> None:
        """Raise if an input is no longer the file that was planned with: the output would be a silent mixture."""
        for path in self._stamps:
            self._check(path, stamp_of(path))

    def _check(self, path: Path, stamp: Stamp) -> None:
        if self._stamps[path] != stamp:
            raise InputError(f"{path} changed since it was first read; nothing was published, run again")
