"""Matrices that are read in blocks, for what is computed from such."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptertool.numerics.held import Single, narrowed


class Rows:
    """A matrix in blocks of three rows."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.shape, self.passes = rows, rows.shape, 0

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        self.passes += 1
        for first in range(0, len(self.rows), 3):
            yield first, self.rows[first : first + 3].copy()

    def singles(self, out: np.ndarray | None) -> Iterator[Single]:
        return narrowed(self.blocks(), out)
