"""The buffers of a thread."""

from __future__ import annotations

import numpy as np

from adaptertool.files.writer import AT_ONCE


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
