"""Factors that are made in pairs."""

from __future__ import annotations

import numpy as np

from adaptertool.kinds.blocks import Halves, skew


def test_both_are_made_once_and_let_go_of() -> None:
    calls: list[tuple[int, int]] = []

    def both(_: object, first: int, last: int) -> np.ndarray:
        calls.append((first, last))
        return np.array([[first], [last]])

    halves = Halves(both)
    read = lambda *_: None  # noqa: E731
    assert halves.take(read, 0, 4, 0) == 0 and halves.take(read, 0, 4, 1) == 4 and calls == [(0, 4)]
    assert halves.take(read, 0, 4, 1) == 4 and calls == [(0, 4)] * 2
    assert halves.take(read, 4, 6, 0) == 4 and halves.take(read, 0, 4, 0) == 0 and len(calls) == 4
    assert len(halves._kept) == 1


def test_numbers_above_the_diagonal_row_after_row() -> None:
    found = skew(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 3)
    assert found.high[0].tolist() == [[0, 1, 2], [-1, 0, 3], [-2, -3, 0]] and found.high[1, 0, 1] == 4
