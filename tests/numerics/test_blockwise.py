"""Columns multiplied blockwise, in each number system, against a dense product in rationals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from adaptertool.numerics import blockwise, compiled
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.interval import Interval, intervals

SIZES = pytest.mark.parametrize(("count", "columns", "wide"), [(1, 6, 1), (3, 12, 4), (5, 8, 8), (0, 4, 2)])


def sample(count: int, columns: int, wide: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(wide)
    high = rng.standard_normal((columns, wide)) * 2.0 ** rng.integers(-30, 4, (columns, wide))
    high[rng.random(high.shape) < 0.2] = 0.0
    return rng.standard_normal((count, columns)), high, high * rng.uniform(-1, 1, high.shape) * 2.0**-54


rational = np.frompyfunc(Fraction, 1, 1)


def exactly(rows: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Of rows of rationals."""
    wide, made = high.shape[1], np.empty(rows.shape, object)
    for (i, j), _ in np.ndenumerate(rows):
        first = j // wide * wide
        matrix = rational(high[first : first + wide, j - first]) + rational(low[first : first + wide, j - first])
        made[i, j] = sum(rows[i, first : first + wide] * matrix, Fraction())
    return made


@SIZES
def test_of_floats(count: int, columns: int, wide: int) -> None:
    """Also of rows that are columns in memory."""
    rows, high, low = sample(count, columns, wide)
    exact = exactly(rational(rows), high, low).astype(np.float64)
    for own in (rows, np.asfortranarray(rows)):
        np.testing.assert_allclose(blockwise.of_floats(own, high, low), exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("count", "columns", "wide"), [(1, 6, 1), (17, 12, 4), (5, 8, 8), (0, 4, 2), (9, 21, 7), (8, 32, 16)]
)
@pytest.mark.parametrize("level", [*compiled.levels(), None])
def test_of_blocks(count: int, columns: int, wide: int, level: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each level of the kernel, and without it: also of parts of rows, and of rows that are columns in memory."""
    monkeypatch.setattr(blockwise, "FUNCTIONS", compiled.functions(level))
    rows, high, low = sample(count, columns, wide)
    exact = exactly(rational(rows), high, low).astype(np.float64)
    beside = np.full((count, columns + 5), 7.0)
    beside[:, :columns] = rows
    for own in (rows, np.asfortranarray(rows), beside[:, :columns]):
        np.testing.assert_allclose(blockwise.of_blocks(own, high, low), exact, rtol=1e-13, atol=1e-13)


@SIZES
def test_of_pairs(count: int, columns: int, wide: int) -> None:
    rows, high, low = sample(count, columns, wide)
    given, numbers = DoubleDouble.of(rows) + DoubleDouble.of(rows * 2.0**-60), rational(rows) * (1 + Fraction(1, 2**60))
    for rest in (low, np.zeros_like(low)):
        found = blockwise.of_pairs(given, high, rest)
        for place, value in np.ndenumerate(exactly(numbers, high, rest)):
            first, second, error = (Fraction(part[place]) for part in found.parts)
            assert abs(first + second - value) <= error <= Fraction(1, 2**90)


@SIZES
def test_of_intervals(count: int, columns: int, wide: int) -> None:
    """Points stay points; of others, whose ends are no sums of powers of two, the ends are met exactly."""
    rows, high, low = sample(count, columns, wide)
    exact = exactly(rational(rows), high, low)
    for place, found in np.ndenumerate(blockwise.of_intervals(intervals(rows), high, low)):
        assert found.low == found.high == exact[place]
    thirds, width = rational(rows) / 3, Fraction(1, 7**9)
    below, apart = exactly(thirds, high, low), np.full(rows.shape, width, object)
    down, up = (exactly(apart, np.where(side, high, 0.0), np.where(side, low, 0.0)) for side in (high < 0, high > 0))
    given = np.frompyfunc(lambda end: Interval(end, end + width), 1, 1)(thirds)
    for place, found in np.ndenumerate(blockwise.of_intervals(given, high, low)):
        assert (found.low, found.high) == (below[place] + down[place], below[place] + up[place])


@pytest.mark.parametrize("wide", [1, 3, 8])
def test_of_blocks_keeps_how_columns_lie(wide: int) -> None:
    """Integers, so that no order of sums plays a part."""
    random = np.random.default_rng(wide)
    rows, high = random.integers(-9, 9, (5, 24)) * 1.0, random.integers(-9, 9, (24, wide)) * 1.0
    expected = blockwise.of_floats(rows, high)
    assert (blockwise.of_blocks(rows, high) == expected).all()
    found = blockwise.of_blocks(np.asfortranarray(rows), high)
    assert (found == expected).all()
    assert found.T.flags.c_contiguous
    part = blockwise.of_blocks(np.asfortranarray(np.tile(rows, (3, 1)))[2:9], high)
    assert (part == blockwise.of_floats(np.tile(rows, (3, 1))[2:9], high)).all()
