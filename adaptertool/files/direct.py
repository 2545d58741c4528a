"""Writing past the memory in which the system keeps what files hold (O_DIRECT): of large outputs little would stay
there, they would drive out what else does, and to find room for them may take longer than to compute them."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

_PAGE = max(1 << 12, mmap.PAGESIZE)  # bytes; where writes begin and end, and the memory that they are from
_LEAST = 1 << 16  # bytes of which it is worth while
_ROOM = 1 << 21  # bytes that a thread writes at once: a block of 16-bit numbers
# The share of free memory above which outputs are written so. As much may be there of what is not yet on the disk, as
# Linux is set as a rule (vm.dirty_ratio): for more, who writes waits for the disk in any case
_OF_MEMORY = 0.2
# File systems on which whole pages may be written so while others of the file are not: ext4 and XFS. They tell who
# they are in the first field of `struct statfs`
_KNOWN = (0xEF53, 0x58465342)

Away = Callable[[], AbstractContextManager[None]]

_rooms = threading.local()  # of each thread, aligned


def worth_while(folder: Path, size: int) -> bool:
    """Whether files of so many bytes in all should be written so, in that folder."""
    return (size > _OF_MEMORY * _free_memory()) and _file_system(folder) in _KNOWN


def _free_memory() -> float:
    """The bytes that programs and files may have, as Linux estimates them; infinite where nobody knows."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), float("inf"))


def _file_system(folder: Path) -> int:
    """What kind of file system the folder is on; 0 where nobody knows."""
    call: Any = getattr(ctypes.CDLL(None), "statfs", None) if sys.platform == "linux" else None
    known = (ctypes.c_long * 64)()  # more than the call fills
    return known[0] if call is not None and call(os.fsencode(folder), known) == 0 else 0


class Direct:
    """A file that is open for it, beside the descriptor that writes what is not whole pages."""

    def __init__(self, path: Path, away: Away) -> None:
        """away: what waits for the disk does so within this. Raises OSError where the file system refuses."""
        self._fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)  # type: ignore[attr-defined,unused-ignore]
        self._away, self._refused = away, False

    def write(self, offset: int, data: memoryview) -> tuple[int, int]:
        """Write the whole pages among these bytes. Returns from where to where in `data` they are written: others are
        left to the caller, and all of them where the file system refuses. Raises OSError."""
        begin = -offset % _PAGE
        end = begin + max(len(data) - begin, 0) // _PAGE * _PAGE
        if self._refused or end - begin < _LEAST:
            return 0, 0
        room, done, source = _room(), begin, np.frombuffer(data, np.uint8)
        while done < end:
            size = min(end - done, _ROOM)
            np.copyto(np.frombuffer(room, np.uint8, size), source[done : done + size])  # others compute meanwhile
            try:
                with self._away():
                    count = os.pwrite(self._fd, room[:size], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._refused, count = True, 0
            done += count
            if count < size:  # the caller writes the rest, and sees why
                break
        return begin, done

    def close(self) -> None:
        """May be called again: only the first closes."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _room() -> memoryview:
    if not hasattr(_rooms, "own"):
        _rooms.own = memoryview(mmap.mmap(-1, _ROOM))
    own: memoryview = _rooms.own
    return own
