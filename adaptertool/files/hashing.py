"""Hashes of files, made while their bytes are in memory anyway, and not in a second pass over the disk."""

from __future__ import annotations

import hashlib
import heapq
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from adaptertool.errors import StorageError

BLAKE3, SHA256 = "blake3", "sha256"
DEFAULT, WITH_SHA256 = (BLAKE3,), (BLAKE3, SHA256)
Digests = Mapping[str, str]  # by name of the hash, hexadecimal

_NEW: Mapping[str, Callable[..., Any]] = {BLAKE3: blake3, SHA256: hashlib.sha256}
_PIECE = 1 << 20  # bytes read at once
_PATIENCE = 0.002  # seconds that a thread waits for its turn; reading its bytes again takes about a fourth of that


class InOrder:
    """The hashes of a file of which several threads have one part after the other, nearly in order.

    A part is hashed from memory where it is its turn. One that comes early is noted, and read back when its turn
    comes: soon, so that the system has it in memory still. Parts may overlap, and each byte is hashed once.
    """

    def __init__(self, size: int, read: Callable[[int, memoryview], None], hashes: tuple[str, ...] = DEFAULT) -> None:
        """read: fills a buffer with the bytes of the file from an offset on, or raises."""
        self._size, self._read, self._states = size, read, {name: _NEW[name]() for name in hashes}
        self._early: list[tuple[int, int]] = []  # a heap of (begin, end)
        self._lent: dict[int, memoryview] = {}  # bytes of these, from their offset on
        self._noting, self._turn = threading.Lock(), threading.Lock()
        self._buffer = memoryview(b"")
        self.done = 0  # bytes that are hashed

    def has(self, offset: int, size: int, data: memoryview | None = None, loans: Loans | None = None) -> None:
        """These bytes of the file are what they are to be; `data`: they are here, and with `loans` stay for a while."""
        if not self._turn.acquire(timeout=0 if loans else _PATIENCE):
            self._note(offset, size, data, loans)  # for who has the turn, or has the next
            return
        try:
            if data is not None and offset <= self.done < offset + size:
                self._update(data[self.done - offset :])
            else:
                self._note(offset, size, data, loans)
            self._catch_up()
        finally:
            self._turn.release()

    def take_back(self, offset: int) -> None:
        """The part that was lent will change: if it was not hashed yet, it is read back."""
        if offset in self._lent:
            with self._turn:
                self._lent.pop(offset, None)

    def shorten(self, size: int) -> None:
        """The file turned out to have so many bytes."""
        self._size = size

    def digests(self) -> Digests:
        """The hashes of the whole file; what nobody had is read."""
        with self._turn:
            self._note(0, self._size)
            self._catch_up()
            return {name: state.hexdigest() for name, state in self._states.items()}

    def caught_up(self) -> int:
        """How many bytes from the first on are hashed, when all that is known is."""
        with self._turn:
            self._catch_up()
            return self.done

    def _note(self, offset: int, size: int, data: memoryview | None = None, loans: Loans | None = None) -> None:
        if offset + size > self.done:
            if data is not None and loans is not None:
                self._lent[offset] = data
                loans.lent(self, offset)
            with self._noting:
                heapq.heappush(self._early, (offset, offset + size))

    def _catch_up(self) -> None:
        while self._early and self._early[0][0] <= self.done:
            with self._noting:
                begin, end = heapq.heappop(self._early)
            if (data := self._lent.get(begin)) is not None:
                self._update(data[self.done - begin :])
                self._lent.pop(begin, None)  # not before, or it would be overwritten meanwhile
            while self.done < end:
                if not self._buffer:
                    self._buffer = memoryview(bytearray(min(_PIECE, self._size)))
                part = self._buffer[: end - self.done]
                self._read(self.done, part)
                self._update(part)

    def _update(self, data: memoryview) -> None:
        for state in self._states.values():
            state.update(data)
        self.done += len(data)


class Loans:
    """What a thread has lent to be hashed. It has two buffers in turn, so a loan lasts to the end of its next job: by
    then those who had the parts before have come, as a rule."""

    def __init__(self) -> None:
        self._now: list[tuple[InOrder, int]] = []
        self._before: list[tuple[InOrder, int]] = []

    def lent(self, state: InOrder, offset: int) -> None:
        self._now.append((state, offset))

    def next_job(self) -> None:
        for state, offset in self._before:
            state.take_back(offset)
        self._before, self._now = self._now, []


def digests_of(
    path: Path, hashes: tuple[str, ...] = DEFAULT, progress: Callable[[int], None] = lambda _: None
) -> Digests:
    """The hashes of a whole file, which must not be a link. Raises StorageError."""
    states, buffer = {name: _NEW[name]() for name in hashes}, memoryview(bytearray(_PIECE))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            while count := os.readv(fd, [buffer]):
                for state in states.values():
                    state.update(buffer[:count])
                progress(count)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(f"reading {path} failed: {error.strerror}") from error
    return {name: state.hexdigest() for name, state in states.items()}
