"""Hashes of files, made while their bytes are in memory anyway, and not in a second pass over the disk: BLAKE3 in any
order (tree.py) where the kernel is there, all else in that of the file."""

from __future__ import annotations

import hashlib
import heapq
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from adaptertool.errors import StorageError
from adaptertool.files.tree import NAME, Tree
from adaptertool.numerics.tree_hash import Values, available

BLAKE3, SHA256 = NAME, "sha256"
DEFAULT, WITH_SHA256 = (BLAKE3,), (BLAKE3, SHA256)
Digests = Mapping[str, str]  # by name of the hash, hexadecimal

_NEW: Mapping[str, Callable[..., Any]] = {BLAKE3: blake3, SHA256: hashlib.sha256}
_PIECE = 1 << 20  # bytes read at once
_PATIENCE = 0.002  # seconds that a thread waits for its turn; reading its bytes again takes about a fourth of that


class InOrder:
    """The hashes of a file of which several threads have one part after the other, nearly in order: of hashes that are
    made from the first byte to the last.

    A part is hashed from memory where it is its turn. One that comes early is noted, and read back when its turn
    comes: soon, so that the system has it in memory still. Parts may overlap, and each byte is hashed once.
    """

    def __init__(self, size: int, read: Callable[[int, memoryview], None], hashes: tuple[str, ...]) -> None:
        """read: fills a buffer with the bytes of the file from an offset on, or raises."""
        self._size, self._read, self._states = size, read, {name: _NEW[name]() for name in hashes}
        self._early: list[tuple[int, int]] = []  # a heap of (begin, end)
        self._noting, self._turn = threading.Lock(), threading.Lock()
        self._buffer = memoryview(b"")
        self._hashed = 0  # bytes

    def has(self, offset: int, data: memoryview, _: object = None) -> None:
        """These bytes are in the file."""
        if not self._turn.acquire(timeout=_PATIENCE):
            self._note(offset, len(data))  # for who has the turn, or has the next
            return
        try:
            if offset <= self._hashed < offset + len(data):
                self._update(data[self._hashed - offset :])
            else:
                self._note(offset, len(data))
            self._catch_up()
        finally:
            self._turn.release()

    def shorten(self, size: int) -> None:
        """The file turned out to have so many bytes."""
        self._size = size

    def complete(self) -> bool:
        """Whether all bytes were there."""
        with self._turn:
            self._catch_up()
            return self._hashed == self._size

    def digests(self) -> Digests:
        """The hashes of the whole file; what nobody had is read."""
        with self._turn:
            self._note(0, self._size)
            self._catch_up()
            return {name: state.hexdigest() for name, state in self._states.items()}

    def _note(self, offset: int, size: int) -> None:
        if offset + size > self._hashed:
            with self._noting:
                heapq.heappush(self._early, (offset, offset + size))

    def _catch_up(self) -> None:
        while self._early and self._early[0][0] <= self._hashed:
            with self._noting:
                _, end = heapq.heappop(self._early)
            while self._hashed < end:
                if not self._buffer:
                    self._buffer = memoryview(bytearray(min(_PIECE, self._size)))
                part = self._buffer[: end - self._hashed]
                self._read(self._hashed, part)
                self._update(part)

    def _update(self, data: memoryview) -> None:
        for state in self._states.values():
            state.update(data)
        self._hashed += len(data)


Hasher = Tree | InOrder


def hasher(size: int, read: Callable[[int, memoryview], None], hashes: tuple[str, ...]) -> Hasher:
    """What hashes a file of this size as its parts come by. read: fills a buffer from an offset on, or raises."""
    return Tree(size, read) if hashes == DEFAULT and available() else InOrder(size, read, hashes)


def hash_all(places: Iterable[tuple[Hasher, int]], data: memoryview) -> None:
    """Tell several files that these bytes are at an offset of each: those at the same offset are hashed once."""
    known: dict[int, Values] = {}
    for state, offset in places:
        if (found := state.has(offset, data, known.get(offset))) is not None:
            known[offset] = found


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
