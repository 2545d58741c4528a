"""The buffers of a thread, which it uses for one block after the other: the system would clear fresh memory each time,
page by page."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any

import numpy as np

from adaptertool.files.writer import AT_ONCE
from adaptertool.numerics.rounding import Array

_KEPT = 16 << 20  # bytes of one of Buffers, at most: more than an ordinary block needs


class Workspace:
    """The buffers of one thread, grown to the largest block and then reused: 8 bytes for each element of each, of which
    only those that are used become resident."""

    def __init__(self) -> None:
        self._size = 0
        self.copied = memoryview(bytearray(AT_ONCE))

    def fit(self, size: int) -> None:
        if size > self._size:
            self._size = size
            self.stored, self.rounded = np.empty((2, 8 * size), np.uint8)
            self.before, self.after, self.delta, self.mix = np.empty((4, 8 * size), np.uint8)
            self.found = np.empty(8 * size, np.uint8)  # what is compared with it


class Buffers(threading.local):
    """Buffers that this thread knows by what they are for, however many there are."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Array] = {}

    def take(self, use: Hashable, size: int, dtype: np.dtype[Any]) -> Array:
        """An array, flat, of whatever numbers: that of the same use from before, but where it is very large."""
        needed = size * dtype.itemsize
        if needed > _KEPT:
            return np.empty(size, dtype)
        buffer = self._kept.get(use)
        if buffer is None or buffer.nbytes < needed:
            self._kept[use] = buffer = np.empty(needed, np.uint8)
        return buffer[:needed].view(dtype)
