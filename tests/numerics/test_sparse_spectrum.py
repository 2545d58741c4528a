"""Rows of a sum of waves against the sum itself, with cosines in decimals: at sizes of many radices, and waves built to
hurt."""

from __future__ import annotations

import functools
from decimal import localcontext
from fractions import Fraction

import numpy as np
import pytest
from circles import cosine, pi

from adaptertool.numerics.sparse_spectrum import can_transform, wave_rows, waves_of

SHAPES = [(1, 1), (1, 2), (2, 1), (3, 4), (7, 6), (5, 49), (4, 121), (9, 128), (2, 135), (6, 47), (3, 64 * 11)]


@functools.cache
def cosines(count: int) -> list[Fraction]:
    """cos(2πj/count), j from 0 on, to 60 digits."""
    with localcontext(prec=75):
        turn = 2 * pi()
        return [Fraction(cosine(turn * j / count)) if j else Fraction(1) for j in range(count)]


def off(numbers: np.ndarray, u: np.ndarray, v: np.ndarray, shape: tuple[int, int], first: int, last: int) -> float:
    """How far a row is off, as a share of what it may be."""
    found, error = wave_rows(waves_of(numbers, (u, v), shape), first, last)
    assert found.shape == (last - first, shape[1]) and found.dtype == np.float64
    table, most = cosines(shape[0] * shape[1]), Fraction(0)
    waves = [(Fraction(c), int(a) * shape[1], int(b) * shape[0]) for c, a, b in zip(numbers, u, v, strict=True)]
    for o in range(first, last):
        for i in range(shape[1]):
            exact = sum((c * table[(o * a + i * b) % len(table)] for c, a, b in waves), Fraction())
            most = max(most, abs(Fraction(float(found[o - first, i])) - exact))
    return float(most / Fraction(error))


@pytest.mark.parametrize("shape", SHAPES)
def test_waves_anywhere(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[1])
    count = min(8, shape[0] * shape[1])
    numbers = rng.standard_normal(count) * 2.0 ** rng.integers(-30, 3, count)
    u, v = np.divmod(rng.permutation(shape[0] * shape[1])[:count], shape[1])
    assert off(numbers, u, v, shape, 0, shape[0]) < 0.2


@pytest.mark.parametrize("columns", [6, 8, 9, 47])
def test_waves_that_meet(columns: int) -> None:
    """In one place of the spectrum, from both of its halves; in its middle; and all of them in phase."""
    shape, count = (5, columns), 10
    signs = np.where(np.arange(count) % 3, 1.0, -1.0) * (1 + 2.0**-40 * np.arange(count))
    u = np.arange(count) % 5
    for v in (np.where(u % 2, 1, columns - 1), np.full(count, columns // 2), np.zeros(count, np.int64)):
        for numbers in (signs, np.ones(count)):
            assert off(numbers, u, v, shape, 0, 5) < 0.2


@pytest.mark.parametrize("columns", [8, 9])
def test_rows_do_not_depend_on_where_they_begin(columns: int) -> None:
    rng = np.random.default_rng(3)
    numbers, (u, v) = rng.standard_normal(12), np.divmod(rng.permutation(40 * columns)[:12], columns)
    assert off(numbers, u, v, (40, columns), 17, 40) < 0.2
    assert off(numbers, u, v, (40, columns), 39, 40) < 0.2


def test_nothing_and_next_to_nothing() -> None:
    none = np.empty(0, np.int64)
    found, _ = wave_rows(waves_of(np.empty(0), (none, none), (3, 4)), 0, 3)
    assert (found == 0).all()
    assert off(np.array([5e-324, -5e-324]), np.array([1, 2]), np.array([1, 3]), (3, 4), 0, 3) <= 1


def test_what_libraries_may_do_by_convolutions_is_left_to_others() -> None:
    assert [can_transform(count) for count in (1, 47, 2048, 11008, 18944)] == [True] * 5
    assert [can_transform(count) for count in (0, 53, 2 * 101, 50257)] == [False] * 4
