"""Reading by pread on validated offsets, never by mmap.

A mapped file that is truncated while it is read kills the process (SIGBUS), and mapping a checkpoint makes
resident memory grow with the file; pread gives an error and keeps memory flat.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from adaptertool.errors import InputError, StorageError


@dataclass(frozen=True, slots=True)
class InputFile:
    """An open regular file and what identified it when it was opened."""

    path: Path
    fd: int
    size: int
    mtime_ns: int
    inode: int

    @property
    def stamp(self) -> tuple[int, int, int]:
        return self.size, self.mtime_ns, self.inode

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
    return InputFile(path, fd, info.st_size, info.st_mtime_ns, info.st_ino)


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


class Inputs:
    """The input files of a run, each opened once, and checked at the end to be what they were at the start."""

    def __init__(self) -> None:
        self._open: dict[Path, InputFile] = {}
        self._stamps: dict[Path, tuple[int, int, int]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Inputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def remember(self, paths: tuple[Path, ...]) -> None:
        """Note size, time and inode of every input before anything is computed from it."""
        for path in paths:
            with open_input(path) as file:
                self._stamps[path] = file.stamp

    def check_unchanged(self) -> None:
        """Raise if an input is no longer the file that was noted: the output would be a silent mixture."""
        for path in self._stamps:
            with open_input(path) as file:
                self._check(path, file.stamp)

    def _check(self, path: Path, stamp: tuple[int, int, int]) -> None:
        if self._stamps.setdefault(path, stamp) != stamp:
            raise InputError(f"{path} changed while it was being read; nothing was published, run again")
