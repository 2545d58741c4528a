"""Pieces of remote files: the right bytes, few requests, bounded memory."""

from __future__ import annotations

import os
import threading

import pytest

from adaptertool.files import ahead
from adaptertool.files.ahead import Ahead

SIZE = 1000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "FIRST", 10)
    monkeypatch.setattr(ahead, "PIECE", 20)


class File:
    def __init__(self) -> None:
        self.data, self.asked = os.urandom(SIZE), list[tuple[int, int]]()
        self.broken = False
        self.file = Ahead(SIZE, self._fetch)

    def _fetch(self, begin: int, end: int) -> bytes:
        self.asked.append((begin, end))
        if self.broken:
            raise OSError(None, "broken")
        return self.data[begin:end]

    def read(self, offset: int, size: int) -> bytes:
        found = b""
        while len(found) < size:
            view = memoryview(bytearray(size - len(found)))
            if not (count := self.file.read_at(offset + len(found), view)):
                break
            found += bytes(view[:count])
        return found


def test_reads_are_exact() -> None:
    one = File()
    for offset, size in ((0, 1), (9, 2), (0, SIZE), (29, 3), (SIZE - 1, 5), (SIZE, 3), (SIZE + 9, 1), (500, 0)):
        assert one.read(offset, size) == one.data[offset : offset + size]


def test_each_piece_is_asked_for_once() -> None:
    one = File()
    for offset in range(0, SIZE, 3):
        assert one.read(offset, 3) == one.data[offset : offset + 3]
    one.file.close()
    assert sorted(one.asked) == [(0, 10), *((begin, min(begin + 20, SIZE)) for begin in range(10, SIZE, 20))]


def test_a_header_alone_brings_nothing_else() -> None:
    one = File()
    one.read(0, 8)
    one.read(8, 2)
    assert one.asked == [(0, 10)]


def test_what_is_read_here_and_there_is_not_asked_for_ahead() -> None:
    one = File()
    for offset in (900, 100, 700, 300, 500):
        one.read(offset, 5)
    assert len(one.asked) == 5


def test_memory_is_bounded() -> None:
    files = [File() for _ in range(9)]
    for offset in range(0, SIZE, 10):
        for one in files:
            assert one.read(offset, 10) == one.data[offset : offset + 10]
        assert len(ahead._shelf._held) <= ahead._HELD
        assert len(ahead._shelf._unread) <= ahead._UNREAD
    for one in files:
        one.file.close()
    own = {one.file.number for one in files}
    assert not [key for key in (*ahead._shelf._held, *ahead._shelf._unread) if key[0] in own]


def test_threads_read_at_once() -> None:
    one, wrong = File(), list[int]()

    def look(start: int) -> None:
        wrong.extend(at for at in range(start, SIZE, 40) if one.read(at, 10) != one.data[at : at + 10])

    threads = [threading.Thread(target=look, args=(start,)) for start in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_failed_is_asked_for_again() -> None:
    one = File()
    one.broken = True
    with pytest.raises(OSError, match="broken"):
        one.read(300, 5)
    one.broken = False
    assert one.read(300, 5) == one.data[300:305]
