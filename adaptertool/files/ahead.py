"""Ranges of remote files, in pieces that are larger than what threads ask for, and asked for ahead of them.

A reply takes some 20 to 100 ms to begin, and then comes at some 50 to 100 MB/s: so many small requests would take
hours, and one at a time would leave a network idle. A file that is read from its begin to its end is asked for ever
further ahead; of one that is read here and there, only what is asked for comes.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from adaptertool.files.bucket import RANGES

FIRST, PIECE = 1 << 20, 8 << 20  # bytes: of the first piece, which holds most headers, and of all others
_HELD = 24  # pieces in memory, of all files together: 200 MB
_UNREAD = 16  # of them that nobody has asked for yet
_AHEAD = 12  # pieces of one file

Fetch = Callable[[int, int], Any]  # the bytes from one offset to another, as a buffer; raises
_Key = tuple[int, int]  # file, piece
_numbers = itertools.count()  # of files, of which no two have the same, as they might have the same id()


class Ahead:
    """A remote file of known size. Threads may read it at once."""

    def __init__(self, size: int, fetch: Fetch) -> None:
        self._size, self.fetch, self.number = size, fetch, next(_numbers)
        self.last, self.ahead = 0, 0  # the piece that is read, and how many after it are asked for

    def read_at(self, offset: int, view: memoryview) -> int:
        """Fill the begin of `view`; returns how many bytes. Raises what `fetch` raises."""
        if offset >= self._size or not len(view):
            return 0
        number = 0 if offset < FIRST else 1 + (offset - FIRST) // PIECE
        begin, end = self.range(number)
        data = memoryview(_shelf.take(self, number))
        count = min(len(view), end - offset)
        view[:count] = data[offset - begin : offset - begin + count]
        return count

    def range(self, number: int) -> tuple[int, int]:
        """The first byte of a piece, and that after its last; the same where the file has none of that number."""
        begin = min(FIRST + (number - 1) * PIECE if number else 0, self._size)
        return begin, min(begin + PIECE if number else FIRST, self._size)

    def close(self) -> None:
        """Forget what is held of it."""
        _shelf.drop(self)


class _Shelf:
    """The pieces in memory, those that were used the longest ago first."""

    def __init__(self) -> None:
        self._held: OrderedDict[_Key, Future[Any]] = OrderedDict()
        self._unread: set[_Key] = set()
        self._lock = threading.Lock()

    def take(self, file: Ahead, number: int) -> Any:
        key = file.number, number
        with self._lock:
            future = self._held.get(key) or self._begin(file, number)
            self._held.move_to_end(key)
            self._unread.discard(key)
            if number == file.last + 1:
                file.ahead = min(2 * file.ahead or 1, _AHEAD)
            elif not file.last - _AHEAD < number <= file.last:
                file.ahead = 0
            if number > file.last or file.ahead == 0:
                file.last = number
            for later in range(number + 1, number + 1 + file.ahead):
                begin, end = file.range(later)
                if begin == end or len(self._unread) >= _UNREAD:
                    break
                if (file.number, later) not in self._held:
                    self._begin(file, later)
                    self._unread.add((file.number, later))
            self._shrink()
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if self._held.get(key) is future:  # who reads it next asks again
                    del self._held[key]
            raise

    def drop(self, file: Ahead) -> None:
        with self._lock:
            for key in [key for key in self._held if key[0] == file.number]:
                self._unread.discard(key)
                self._held.pop(key).cancel()

    def _begin(self, file: Ahead, number: int) -> Future[Any]:
        begin, end = file.range(number)
        fetch = file.fetch
        future = self._held[file.number, number] = RANGES.submit(lambda: fetch(begin, end))
        return future

    def _shrink(self) -> None:
        while len(self._held) > _HELD:
            key = next((key for key in self._held if key not in self._unread), next(iter(self._held)))
            self._unread.discard(key)
            del self._held[key]


_shelf = _Shelf()
