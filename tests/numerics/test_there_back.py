"""Differences of float32, products there and back, and matrices that are held: against float64 and rationals, at every
level of the kernel, kept between passes or not."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from blocked import Rows

from adaptertool.numerics import compiled, difference, there_back
from adaptertool.numerics.held import Held, Room

ALL = [None, *compiled.levels()]  # None is numpy


def awkward(rng: np.random.Generator) -> np.ndarray:
    """Numbers of all sizes, neighbours, zeros of both signs, what is not finite."""
    some = (rng.standard_normal(5000) * 2.0 ** rng.integers(-148, 127, 5000)).astype(np.float32)
    near = np.float32(1) + rng.integers(-4, 5, 2000).astype(np.float32) * np.float32(2.0**-23)
    return np.concatenate([some, near, np.array([0, -0.0, np.inf, np.nan, 1e38, -3e38, 2.0**-149], np.float32)])


@pytest.mark.parametrize("level", ALL)
def test_differences_are_those_of_rationals(level: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.permutation(awkward(rng)) for _ in range(2))
    keep = np.isfinite(one) & np.isfinite(other) & (abs(one.astype(float) - other) < 3e38)
    one, other = one[keep][:4999], other[keep][:4999]  # no multiple of SUMS
    monkeypatch.setattr(difference, "FUNCTIONS", compiled.functions(level))
    out, squares, rounded = np.empty_like(one), np.ones(16), np.zeros(16)
    largest = difference.subtract(one, other, out, squares, rounded)
    assert np.array_equal(out, one - other) and largest == abs(out).max()
    exact = np.array(
        [Fraction(float(x)) - Fraction(float(y)) == Fraction(float(z)) for x, y, z in zip(one, other, out, strict=True)]
    )
    assert 100 < exact.sum() < len(exact) - 100
    lanes = np.arange(len(out)) % 16
    for sums, chosen, start in ((squares, out, 1.0), (rounded, np.where(exact, 0, out), 0.0)):
        wide = chosen.astype(np.longdouble) ** 2
        for lane in range(16):
            assert sums[lane] == pytest.approx(float(wide[lanes == lane].sum()) + start, rel=1e-13)


def test_levels_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, found = np.random.default_rng(1), []
    for size in (0, 1, 15, 16, 17, 5000):
        one, other = (rng.permutation(awkward(rng))[:size] for _ in range(2))
        for level in ALL:
            monkeypatch.setattr(difference, "FUNCTIONS", compiled.functions(level))
            out, sums = np.empty_like(one), np.zeros((2, 16))
            with np.errstate(all="ignore"):
                largest = difference.subtract(one, other, out, *sums)
            found.append((np.float64(largest).tobytes(), out.tobytes(), sums.tobytes()))
        if np.isfinite(one).all() and np.isfinite(other).all():
            assert len(set(found[-len(ALL) :])) == 1


@pytest.mark.parametrize("level", ALL)
@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 16, 16), (7, 17, 5), (13, 2100, 33), (64, 100, 48), (5, 1024, 16)])
def test_there_and_back(shape: tuple[int, int, int], level: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(there_back, "FUNCTIONS", compiled.functions(level))
    (high, wide, count), rng = shape, np.random.default_rng(2)
    for dtype in (np.float32, np.float64):
        rows = rng.standard_normal((high, wide)).astype(dtype)
        right = rng.standard_normal((count, wide)).astype(dtype)
        cut = high // 2
        blocks = [(first, part) for first, part in ((0, rows[:cut]), (cut, rows[cut:])) if len(part)]
        left, back = there_back.there_and_back(blocks, right, high, back=True)
        assert left.dtype == dtype and back is not None and back.dtype == dtype
        unit, wanted = np.finfo(dtype).eps, rows.astype(np.float64) @ right.T.astype(np.float64)
        reach = np.linalg.norm(rows.astype(float), axis=1)[:, None] * np.linalg.norm(right.astype(float), axis=1)
        assert (abs(left - wanted) <= 2 * wide * unit * reach).all()
        again = wanted.T @ rows.astype(np.float64)
        assert (abs(back - again) <= 4 * (wide + high) * unit * (reach.T @ abs(rows))).all()
        alone, none = there_back.there_and_back(blocks, right, high, back=False)
        assert none is None and np.array_equal(alone, left)


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_what_is_kept_changes_nothing_but_the_passes(room: int) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((20, 31)).astype(np.float32).astype(np.float64)
    right = np.linalg.qr(rng.standard_normal((31, 4)))[0].T.astype(np.float32)
    matrix, factors = Rows(rows), (rng.standard_normal((20, 2)), rng.standard_normal((2, 31)))
    with Held(matrix, Room(room)) as held:
        for _ in range(3):
            left, back = held.times(right, back=True)
        wide, _ = held.times(right.astype(np.float64), back=False)
        rest, norm = held.left_over(factors)
        assert held.square() == pytest.approx(norm**2)
    np.testing.assert_allclose(wide, rows @ right.T.astype(np.float64), rtol=1e-13)
    np.testing.assert_allclose(left, wide, atol=1e-5)
    assert back is not None
    assert rest == pytest.approx(np.linalg.norm(rows - factors[0] @ factors[1]), rel=1e-14)
    assert norm == pytest.approx(np.linalg.norm(rows), rel=1e-14)
    assert matrix.passes == (5 if room == 0 else 1)
    with Held(Rows(rows), Room(1 << 20)) as other:
        assert np.array_equal(other.times(right, back=True)[0], left)


@pytest.mark.parametrize("power", [-200, -45, 0, 45, 200])
def test_what_float32_does_not_hold_is_measured_in_float64(power: int) -> None:
    rng = np.random.default_rng(4)
    b, a = rng.standard_normal((20, 2)), rng.standard_normal((2, 31))
    rows = np.ldexp(b @ a + 1e-9 * rng.standard_normal((20, 31)), power)
    with Held(Rows(rows), Room()) as held:
        held.times(np.ones((1, 31), np.float32), back=False)
        assert held.narrow() == (abs(power) < 40)
        rest, norm = held.left_over((np.ldexp(b, power), a))
    assert rest == pytest.approx(np.linalg.norm(rows - np.ldexp(b, power) @ a), rel=1e-7)
    assert norm == pytest.approx(np.linalg.norm(rows), rel=1e-14)


def test_without_a_product_before_it_is_measured_too() -> None:
    rows = np.random.default_rng(5).standard_normal((20, 31))
    with Held(Rows(rows), Room()) as held:
        rest, norm = held.left_over((np.zeros((20, 1)), np.zeros((1, 31))))
    assert rest == pytest.approx(norm, rel=1e-15) == pytest.approx(np.linalg.norm(rows), rel=1e-14)


def test_room_is_shared_and_used_again() -> None:
    room = Room(4 * 1000)
    one = room.take(600)
    assert one is not None and room.take(600) is None
    small = room.take(400)
    assert small is not None
    room.give_back(one)
    again = room.take(500)
    assert again is one  # large enough
    room.give_back(again)
    room.give_back(small)
    assert room.take(1001) is None
    all_of_it: Any = room.take(1000)  # what is free makes room
    assert all_of_it.size == 1000
