"""Files of this machine, or of file systems that are mounted here.

Read by pread on validated offsets, never by mmap. A mapped file that is truncated while it is read kills the process
(SIGBUS), and mapping a checkpoint makes resident memory grow with the file; pread gives an error and keeps memory flat.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from adaptertool.errors import InputError, StorageError
from adaptertool.files.store import BROKEN, FILE, FOLDER, OTHER, Entry, InputFile, Store


def _open(path: Path) -> InputFile:
    """FIFOs and devices are refused, and opening one does not hang (O_NONBLOCK)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _opening_error(path, error) from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise InputError(f"{path} is not a regular file")
    stamp = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)

    def read_at(offset: int, view: memoryview) -> int:
        return os.preadv(fd, [view], offset)

    return InputFile(path, info.st_size, stamp, read_at, lambda: os.close(fd), fd)


def _opening_error(path: Path, error: OSError) -> InputError | StorageError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return InputError(f"{path} does not exist")
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO):
        return InputError(f"{path} cannot be opened: {error.strerror}")
    return StorageError(f"{path} cannot be opened: {error.strerror}")


def _look(path: Path) -> str | None:
    if os.path.isdir(path):
        return FOLDER
    if os.path.isfile(path):  # noqa: PTH113  # unlike Path.is_file, never raises
        return FILE
    if os.path.exists(path):
        return OTHER
    return BROKEN if os.path.lexists(path) else None


def _entries(folder: Path) -> list[Entry]:
    try:
        with os.scandir(folder) as found:
            return sorted(Entry(one.name, _is_folder(one), one.is_symlink()) for one in found)
    except OSError as error:
        raise StorageError(f"{error.filename} cannot be listed: {error.strerror}") from error


def _is_folder(one: os.DirEntry[str]) -> bool:
    try:
        return one.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _real(path: Path) -> Path:
    return path.resolve(strict=True)


def _when(path: Path) -> float | None:
    return path.stat().st_mtime if path.is_file() else None


LOCAL = Store(scheme="", open=_open, look=_look, entries=_entries, real=_real, when=_when)
