"""The BLAKE3 of a file of which several threads have parts, in any order: none of them waits for another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
from blake3 import blake3

from adaptertool.numerics.tree_hash import GROUP, WORDS, Values, hash_of, values_of

NAME = "blake3"

_PIECE = 16  # groups that are read at once
_KEPT = 16  # groups of a file of which parts are kept; of more, only which parts were there


class Tree:
    """The groups (numerics.tree_hash) that lie in a part are hashed at once, from where they are. What is left at its
    ends is kept until others bring the rest of these groups. Parts may overlap, where they are of the same bytes."""

    def __init__(self, size: int, read: Callable[[int, memoryview], None]) -> None:
        """read: fills a buffer with the bytes of the file from an offset on, or raises."""
        self._size, self._read = size, read
        self._values = np.empty((size // GROUP + 1, WORDS), np.uint32)
        self._done = bytearray(size // GROUP + 1)  # 1: that value is there
        self._parts: dict[int, _Part] = {}  # of groups that are not whole yet, by number
        self._lock = threading.Lock()  # of the parts

    def has(self, offset: int, data: memoryview, known: Values | None = None) -> Values | None:
        """These bytes are in the file. known: the values of the groups in them, if another file has them at the same
        offset. Returns these values, if they are known now."""
        end = offset + len(data)
        first, last = -(-offset // GROUP), end // GROUP if self._size > GROUP else 0
        head, tail = min(first * GROUP, end), max(last * GROUP, min(first * GROUP, end))
        if first < last and 0 in self._done[first:last]:
            known = values_of(data[head - offset : tail - offset], first) if known is None else known
            self._values[first:last] = known
            self._done[first:last] = b"\1" * (last - first)
        for begin, stop in ((offset, head), (tail, end)):
            if begin < stop:
                self._keep(begin, data[begin - offset : stop - offset])
        return known

    def shorten(self, size: int) -> None:
        """The file turned out to have so many bytes."""
        self._size = size

    def complete(self) -> bool:
        """Whether all bytes were there."""
        whole, rest = self._shape()
        return 0 not in self._done[:whole] and (not rest or bool(self._done[whole]) or self._has_rest())

    def digests(self) -> Mapping[str, str]:
        """The hash of the whole file; what nobody had is read."""
        whole, rest = self._shape()
        for begin in range(0, whole, _PIECE):
            if 0 in self._done[begin : (end := min(begin + _PIECE, whole))]:
                self.has(begin * GROUP, self._bytes(begin * GROUP, (end - begin) * GROUP))
        part = self._parts.get(whole)
        kept = part.content if part is not None and self._has_rest() else None
        last = memoryview(kept)[:rest] if kept is not None else self._bytes(whole * GROUP, rest)
        if not whole:
            return {NAME: blake3(last).hexdigest()}
        return {NAME: hash_of(np.concatenate([self._values[:whole], values_of(last, whole)]))}

    def _shape(self) -> tuple[int, int]:
        """(whole groups, bytes of what follows them). One group alone does not count as whole: its hash is no value."""
        return divmod(self._size, GROUP) if self._size > GROUP else (0, self._size)

    def _has_rest(self) -> bool:
        whole, rest = self._shape()
        return (part := self._parts.get(whole)) is not None and part.ranges == [(0, rest)]

    def _keep(self, offset: int, data: memoryview) -> None:
        """A part of one group."""
        group, begin = divmod(offset, GROUP)
        with self._lock:
            if self._done[group]:
                return
            if (part := self._parts.get(group)) is None:
                part = self._parts[group] = _Part(bytearray(GROUP) if len(self._parts) < _KEPT else None)
            part.add(begin, data)
            if part.ranges != [(0, GROUP)] or self._size <= GROUP:
                return
            del self._parts[group]
        content = self._bytes(group * GROUP, GROUP) if part.content is None else memoryview(part.content)
        self._values[group] = values_of(content, group)
        self._done[group] = 1

    def _bytes(self, offset: int, size: int) -> memoryview:
        buffer = memoryview(bytearray(size))
        self._read(offset, buffer)
        return buffer


class _Part:
    """What is known of a group: which ranges of its bytes were there, and these bytes if there was room for them."""

    def __init__(self, content: bytearray | None) -> None:
        self.content, self.ranges = content, list[tuple[int, int]]()

    def add(self, begin: int, data: memoryview) -> None:
        end = begin + len(data)
        if self.content is not None:
            self.content[begin:end] = data
        beside = [one for one in self.ranges if begin <= one[1] and one[0] <= end]
        for one in beside:
            self.ranges.remove(one)
            begin, end = min(begin, one[0]), max(end, one[1])
        self.ranges.append((begin, end))
