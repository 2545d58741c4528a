"""Products of factors that float32 rounds, or that are only near what they stand for: every element that the kernel
does not leave open is the correctly rounded one, at every level of instructions, by an oracle of rationals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from in_one_visit import ALL, ALPHAS, exact, factors, require, room

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics import compiled, fused

pytestmark = pytest.mark.skipif(not ALL, reason="no compiled kernel: there was no C compiler")
SHAPES = [(1, 1, 1), (5, 33, 3), (7, 15, 16), (13, 70, 17), (15, 533, 5), (14, 130, 130)]


def longer(factor: Any, rng: np.random.Generator) -> Any:
    """The same with bits that no float32 has."""
    return factor * (1 + rng.random(factor.shape) * 2.0**-22)


@pytest.mark.long("dtype")
@pytest.mark.parametrize("how", ["random", "wide", "small", "ties"])
@pytest.mark.parametrize("off", [0.0, 2.0**-45, 2.0**-18])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_products(how: str, off: float, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """off: of the largest product of a row and a column, by which what is meant is off, up or down."""
    monkeypatch.setattr(fused, "_ROOM", 1)
    rng = np.random.default_rng(0)
    for number, (rows, columns, rank) in enumerate(SHAPES):
        alphas = ALPHAS[number % len(ALPHAS)]
        stored, left, right = factors("wide" if how == "wide" else "random", dtype, rows, columns, rank, rng)
        if how == "small":  # what float32 loses of the right factor, the left one makes large again
            left, right = left * 2.0**50, right * 2.0 ** rng.integers(-155, -100, right.shape)
        left, right = longer(left, rng), longer(right, rng)
        w, checked = doubles(stored, dtype), rng.choice(rows * columns, min(rows * columns, 200), replace=False)
        if how == "ties":  # the last of what is summed makes up what is missing to the middle of two stored numbers
            at, each = rng.integers(rows, size=columns), np.arange(columns)
            left[:, -1] = 1.0
            right[-1] = BY_DTYPE[dtype].spacing(w)[at, each] / 2 - np.einsum("jk,kj->j", left[at, :-1], right[:-1])
            checked = np.union1d(checked, (at * columns + each)[:200])
        error = off * float(np.linalg.norm(left, axis=1).max() * np.linalg.norm(right, axis=0).max())
        moved = Fraction(error) * (1 if number % 2 else -1)
        packed, scaled = fused.Right.of(right, few_bits=False), fused.Left.of(left, few_bits=False)
        assert packed is not None and scaled is not None and (packed.double is not None or columns == 1)
        values = {place: exact(w, left, right, *divmod(place, columns)) for place in checked.tolist()}
        for level in ALL:
            monkeypatch.setattr(fused, "FUNCTIONS", compiled.functions(level))
            out, untouched = room(stored, len(alphas))
            made = fused.add_product(stored.reshape(-1), dtype, scaled, packed, alphas, out, (0, 1), None, error)
            assert made is not None and untouched()
            for alpha, result, one in zip(alphas, out, made, strict=True):
                table = result.reshape(stored.shape)
                assert len(one.open) <= max(2, 0.01 * stored.size) or how != "random" or off > 2.0**-30
                for place in set(checked.tolist()) - set(one.open.tolist()):
                    before, change = values[place]
                    more = moved if left[place // columns].any() else 0  # nothing is added to a row of zeros
                    value = before + Fraction(alpha) * (change + more)
                    require(dtype, stored, table, divmod(place, columns), value)


def test_what_is_off_is_left_open() -> None:
    """A weight beside the middle of two stored numbers, where what is meant may lie on the other side of it."""
    stored = rounded(np.ones((1, 32)), "BF16").reshape(-1)
    packed = fused.Right.of(np.full((1, 32), 2.0**-8 + 2.0**-40), few_bits=False)
    scaled = fused.Left.of(np.ones((1, 1)), few_bits=False)
    assert packed is not None and scaled is not None
    for off, count in ((0.0, 0), (2.0**-41, 0), (2.0**-39, 32)):
        out = [np.empty(32, stored.dtype)]
        made = fused.add_product(stored, "BF16", scaled, packed, [1.0], out, (0, 1), None, off)
        assert made is not None and len(made[0].open) == count
        assert count or (doubles(out[0], "BF16") == 1 + 2.0**-7).all()


def test_nothing_is_written_behind_what_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all of a row is open, so are the numbers that fill up its last vector: they are no elements."""
    monkeypatch.setattr(fused, "_ROOM", 1)
    for level in ALL:
        monkeypatch.setattr(fused, "FUNCTIONS", compiled.functions(level))
        for dtype in ("BF16", "F16"):
            stored = rounded(np.ones((3, 33)), dtype)
            packed = fused.Right.of(np.full((1, 33), 1 + 2.0**-40), few_bits=False)
            scaled = fused.Left.of(np.ones((3, 1)), few_bits=False)
            assert packed is not None and scaled is not None
            out, untouched = room(stored, 1)
            made = fused.add_product(stored.reshape(-1), dtype, scaled, packed, [1.0], out, (0, 1), None, 0.5)
            assert made is not None and untouched()
            assert made[0].open.tolist() == list(range(99))
