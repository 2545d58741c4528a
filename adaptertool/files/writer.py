"""Writing at known offsets into preallocated files, and copying bytes from inputs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

from adaptertool.errors import InternalError, StorageError
from adaptertool.files.direct import Away, Direct
from adaptertool.files.hashing import DEFAULT, Digests, hash_all, hasher
from adaptertool.files.reader import Inputs, read_into
from adaptertool.files.store import InputFile
from adaptertool.spec.tally import Fate, Tally

COPY_CHUNK = 2 << 20  # bytes that a job copies

# Bytes read, hashed and written by one call, and of the buffer for them: as many as a core's own cache holds. For more,
# Linux also takes larger pages, which in a virtual machine may be some that the host has to find first: that took two
# to four times as long
AT_ONCE = 1 << 18
_EARLY = 32 << 20  # bytes of which writing to the disk is begun at once

# The call of Linux by which two files share blocks, until one is written to; blocks begin at multiples of _BLOCKS bytes
# on each file system that has it
_FICLONERANGE, _BLOCKS = 0x4020940D, 1 << 16


def _sync_file_range() -> Any:
    """The call of Linux that begins to write a range of a file to the disk and does not wait; None elsewhere."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if call is not None:
        call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


_BEGIN_WRITING, _begin = 2, _sync_file_range()  # SYNC_FILE_RANGE_WRITE


def _fallocate() -> Any:
    """The call of Linux that gives a file its blocks; None elsewhere. Not posix_fallocate, in the place of which the C
    library writes a byte into each block where the file system has no such call: that takes as long as the run."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None) if sys.platform == "linux" else None
    if call is not None:
        call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return call


_give_blocks = _fallocate()


class OutputFile:
    """A new file of known size. `finish` makes it durable; until then it is not part of any checkpoint."""

    def __init__(
        self,
        path: Path,
        size: int,
        part: Path | None = None,
        hashes: tuple[str, ...] = DEFAULT,
        *,
        most: int | None = None,
        away: Away | None = None,
    ) -> None:
        """part: the name that the file has until it is finished, if not its own
        most: bytes that it may grow to before it is shortened
        away: write past what the system keeps of files (files.direct), where it can be, and wait for the disk in this
        """
        self.path, self.size, self.part = path, size, part or path
        self.hashes = hasher(size if most is None else most, self.read_back, hashes)
        self._can_share = sys.platform == "linux"
        self.tallies: list[Tally] = []  # of the parts of it, by those who make them
        self.fates: list[tuple[str, Fate]] = []  # the same, of weights that stay codes, with their families
        try:
            self.fd = os.open(self.part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError as error:
            _fail(path, error)
        try:
            if size:
                allocate(self.fd, size)
        except OSError as error:
            os.close(self.fd)
            _fail(path, error)
        self._direct: Direct | None = None
        with contextlib.suppress(OSError):
            self._direct = Direct(self.part, away) if away else None

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes at an offset, and have them hashed. Raises StorageError."""
        self.put(offset, data)
        self.hashes.has(offset, data)

    def put(self, offset: int, data: memoryview) -> None:
        """Write bytes at an offset; the disk may begin on them. Raises StorageError."""
        if self._direct is None:
            self._put(offset, data)
            return
        try:
            begin, end = self._direct.write(offset, data)
        except OSError as error:
            _fail(self.path, error)
        self._put(offset, data[:begin])
        self._put(offset + end, data[end:])

    def _put(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            try:
                count = os.pwrite(self.fd, data[done : done + AT_ONCE], offset + done)
            except OSError as error:
                _fail(self.path, error)
            if not count:
                raise StorageError(f"writing {self.path} failed: the system takes no more bytes")
            done += count
        self._begin_writing(offset, len(data))

    def shares(self, source: InputFile, offset: int, target: int, size: int) -> bool:
        """Have these bytes be the same blocks of the disk as those of an input, where the file system can; returns
        whether they are. Where it cannot once, it is not asked again."""
        if not self._can_share or source.fd is None or offset % _BLOCKS or target % _BLOCKS or size % _BLOCKS:
            return False
        try:
            fcntl.ioctl(self.fd, _FICLONERANGE, struct.pack("qQQQ", source.fd, offset, size, target))
        except OSError:  # whatever it is: writing says so too, if it is not about sharing alone
            self._can_share = False
        return self._can_share

    def read_back(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes that were written from `offset` on. Raises StorageError."""
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self.fd, [view[done:]], offset + done)
            except OSError as error:
                _fail(self.path, error)
            if not count:
                raise StorageError(f"{self.path} could not be read back at byte {offset + done:,}")
            done += count

    @property
    def digests(self) -> Digests:
        """The hashes of all that was written, which must be every byte. Raises InternalError where it is not."""
        if not self.hashes.complete():
            raise InternalError(f"{self.path}: not all of its {self.size:,} bytes were written")
        return self.hashes.digests()

    def _begin_writing(self, offset: int, size: int) -> None:
        """Where these bytes end a range, the disk is to begin on it, so that fsync finds little left.

        Only a hint, and so its result is not looked at: `finish` finds what goes wrong. Blocks are written nearly in
        order; what is not there yet, fsync writes.
        """
        first, last = offset // _EARLY, (offset + size) // _EARLY
        if last > first and _begin is not None:
            _begin(self.fd, first * _EARLY, (last - first) * _EARLY, _BEGIN_WRITING)

    def shorten(self, size: int) -> None:
        """The file turned out to have so many bytes, fewer than it was made for."""
        try:
            os.truncate(self.fd, size)
        except OSError as error:
            _fail(self.path, error)
        self.size = size
        self.hashes.shorten(size)

    def close(self) -> None:
        """May be called again: only the first closes."""
        if self._direct is not None:
            self._direct.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def finish(self) -> None:
        """Check the length, fsync, close. A failed fsync is final: the kernel may have dropped the pages.

        A safetensors file must then open in the reference reader, or it is not ready to be published.

        Raises StorageError.
        """
        try:
            if os.fstat(self.fd).st_size != self.size:
                raise StorageError(f"{self.path} has {os.fstat(self.fd).st_size:,} bytes, not {self.size:,}")
            os.fsync(self.fd)
        except OSError as error:
            _fail(self.path, error)
        finally:
            self.close()
        if self.path.suffix == ".safetensors":
            try:
                with safe_open(self.part, framework="numpy"):
                    pass
            except (SafetensorError, OSError) as error:
                raise StorageError(f"{self.path} was written, but safetensors cannot open it: {error}") from error


def write_small(path: Path, data: bytes) -> None:
    """Write a whole new file and make it durable."""
    with contextlib.closing(OutputFile(path, len(data))) as file:
        file.write(0, memoryview(data))
        file.finish()


def forget(path: Path) -> None:
    """Have the system let go of a durable file's bytes, so that reading them comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _fail(path: Path, error: OSError) -> NoReturn:
    raise StorageError(f"writing {path} failed: {error.strerror}") from error


def allocate(fd: int, size: int) -> None:
    """Make an empty file so long, with its blocks on the disk where the file system can, so that a full disk is found
    at once. Raises OSError."""
    while _give_blocks is not None:
        if _give_blocks(fd, 0, 0, size) == 0:
            return
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            break  # a file system without preallocation
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    os.truncate(fd, size)


def copy_range(
    inputs: Inputs, path: Path, offset: int, size: int, outputs: Sequence[tuple[OutputFile, int]], buffer: memoryview
) -> None:
    """Copy bytes from `offset` of `path` to each (output, offset), through `buffer`. They are read once, hashed once
    for all files that have them at the same offset, and written where the file system cannot share their blocks.
    """
    states = [(output.hashes, target) for output, target in outputs]
    if (hashed := inputs.hasher(path)) is not None:
        states.append((hashed, offset))
    with inputs.opened(path) as source:
        written = [place for place in outputs if not place[0].shares(source, offset, place[1], size)]
        for at in range(0, size, len(buffer)):
            part = buffer[: size - at]
            read_into(source, offset + at, part)
            for output, target in written:
                output.put(target + at, part)
            hash_all([(state, begin + at) for state, begin in states], part)  # now, since it may read them back
