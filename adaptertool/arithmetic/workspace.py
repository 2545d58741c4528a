"""The buffers of a thread."""

from __future__ import annotations

import numpy as np

from adaptertool.files.hashing import Loans
from adaptertool.files.writer import COPY_CHUNK


class Workspace:
    """The buffers of one thread, grown to the largest block and then reused: 8 bytes for each element of each, of which
    only those that are used become resident."""

    def __init__(self) -> None:
        self._size = 0
        self.loans = Loans()
        self.copied, self._copied = memoryview(bytearray(COPY_CHUNK)), memoryview(bytearray(COPY_CHUNK))

    def fit(self, size: int) -> None:
        if size > self._size:
            self._size = size
            self.stored, self._stored, self.rounded, self._rounded = np.empty((4, 8 * size), np.uint8)
            self.before, self.after, self.delta, self.mix = np.empty((4, 8 * size), np.uint8)
            self.found = np.empty(8 * size, np.uint8)  # what is compared with it

    def next_job(self) -> None:
        """What is read and written now goes into other buffers: those of the last job are hashed meanwhile."""
        self.loans.next_job()
        self.copied, self._copied = self._copied, self.copied
        if self._size:
            self.stored, self._stored = self._stored, self.stored
            self.rounded, self._rounded = self._rounded, self.rounded
