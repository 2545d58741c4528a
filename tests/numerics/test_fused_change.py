"""w + t·(h + l) and w + t·(w·h − w) of the kernel, at each of its levels, against rationals."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from in_one_visit import ALL, DTYPES, require

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics import compiled, fused, fused_change
from adaptertool.numerics.fused_change import Change, Times

COUNT = 1003
NUMBERS = (1.0, 0.5, 1 / 3, -0.1, 3.0, -1.0, 2.0**-30)
pytestmark = pytest.mark.skipif(not ALL, reason="there is no kernel")


def weights(dtype: str, rng: np.random.Generator) -> Any:
    """Zeros of both signs, subnormal numbers and large ones among them."""
    spread = {"BF16": 130, "F16": 22, "F32": 140}[dtype]
    w = rng.standard_normal(COUNT) * 2.0 ** rng.choice([-5, 0, *range(-spread, 8, 7)], COUNT)
    w[::11], w[5::11] = 0.0, -0.0
    return rounded(w, dtype)


def changes(how: str, w: Any, dtype: str, rng: np.random.Generator) -> Any:
    """h of w (n,), float64."""
    numbers, spacing = doubles(w, dtype), BY_DTYPE[dtype].spacing(doubles(w, dtype))
    if how == "few bits":
        h = doubles(rounded(rng.standard_normal(COUNT) * np.abs(numbers), "BF16"), "BF16")
    elif how == "middles":  # half a unit in the last place, and what is next to it; twice as much for t of 1/2
        h = spacing * rng.choice([0.5, 1.0, 1.5, -0.5, -1.0, -0.25], COUNT)
        h[1::4] *= 1 + 2.0**-52
        h[2::4] *= 1 - 2.0**-53
    elif how == "cancelling":  # w + t·h next to nothing for several t
        h = (
            numbers
            * rng.choice([-2.0, -1.0, -3.0, 10.0, 1.0, -1 / 3], COUNT)
            * (1 + 2.0**-50 * rng.integers(-2, 3, COUNT))
        )
    elif how == "apart":
        h = rng.standard_normal(COUNT) * 2.0 ** rng.integers(-900, 10, COUNT)
        h[::3] = rng.choice([2.0**-1070, -(2.0**-1020), 0.0, -0.0], h[::3].size)
    else:
        h = rng.standard_normal(COUNT) * 0.01
    return h


def gains(how: str, rng: np.random.Generator) -> Any:
    g = 1 + rng.standard_normal(COUNT) * 0.01
    if how == "few bits":
        g = doubles(rounded(g, "BF16"), "BF16")
    elif how == "middles":
        g = 1 + rng.choice([2.0**-8, 2.0**-9, 3 * 2.0**-10, -(2.0**-9), 2.0**-11], COUNT) * rng.choice(
            [1, 1 + 2.0**-40], COUNT
        )
    elif how == "cancelling":
        g = rng.choice([0.0, -0.0, -1.0, 0.5, 2 / 3, 1.0, -2.0], COUNT)
    elif how == "apart":
        g = rng.standard_normal(COUNT) * 2.0 ** rng.integers(-900, 3, COUNT)
    return g


def check(dtype: str, w: Any, given: Change, values: Any, times: Sequence[Times], *, most_open: float) -> None:
    """values: (t, i) -> the exact value of element i"""
    lefts = []
    for level in ALL:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused_change, "FUNCTIONS", compiled.functions(level))
            patch.setattr(fused, "_ROOM", 1)
            out = [np.empty(COUNT, w.dtype) for _ in times]
            made = fused_change.change(w, dtype, given, times, out, (5, 3))
        assert made is not None
        lefts.append([one.open.tolist() for one in made])
        for time, result, one in zip(times, out, made, strict=True):
            assert len(one.open) <= most_open * COUNT
            word, left = f"u{result.itemsize}", set(one.open.tolist())
            assert one.changed == np.count_nonzero(result.view(word) != w.view(word))
            for place in range(0, COUNT, 1 if level == ALL[-1] else 9):
                if place not in left:
                    require(dtype, w, result, (place,), values(Fraction(time.number), place))
    assert all(some == lefts[0] for some in lefts)


@pytest.mark.long("dtype")
@pytest.mark.parametrize("how", ["ordinary", "few bits", "middles", "cancelling", "apart"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums(how: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    w = weights(dtype, rng)
    h = changes(how, w, dtype, rng)
    numbers, exact = [Fraction(x) for x in doubles(w, dtype).tolist()], [Fraction(x) for x in h.tolist()]
    times = [Times(t) for t in NUMBERS]
    most = {"apart": 0.2, "cancelling": 0.1}.get(how, 0.0)  # smaller than float64 has
    check(dtype, w, Change(h), lambda t, i: numbers[i] + t * exact[i], times, most_open=most)


@pytest.mark.long("dtype")
@pytest.mark.parametrize("how", ["ordinary", "middles", "cancelling"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_two_terms(how: str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    w = weights(dtype, rng)
    h = changes(how, w, dtype, rng)
    low = h * rng.standard_normal(COUNT) * 2.0**-54
    low[::5] = 0.0
    numbers = [Fraction(x) for x in doubles(w, dtype).tolist()]
    exact = [Fraction(x) + Fraction(y) for x, y in zip(h.tolist(), low.tolist(), strict=True)]
    most = {"middles": 0.6, "cancelling": 0.6}.get(how, 0.0)
    check(dtype, w, Change(h, low), lambda t, i: numbers[i] + t * exact[i], [Times(t) for t in NUMBERS], most_open=most)


@pytest.mark.long("dtype")
@pytest.mark.parametrize("how", ["ordinary", "few bits", "middles", "cancelling", "apart"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gains(how: str, dtype: str) -> None:
    rng = np.random.default_rng(5)
    w = weights(dtype, rng)
    g = gains(how, rng)
    numbers, exact = [Fraction(x) for x in doubles(w, dtype).tolist()], [Fraction(x) for x in g.tolist()]
    times = [Times(t) for t in NUMBERS]
    most = 0.2 if how in ("apart", "cancelling") else 0.02  # of g − w not all bits are held
    value = lambda t, i: numbers[i] + t * (numbers[i] * exact[i] - numbers[i])  # noqa: E731
    check(dtype, w, Change(g, gain=True), value, times, most_open=most)


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_may_be_off(dtype: str, gain: bool) -> None:
    """Elements that are told as known are right for every change, and every number that it is multiplied with, within
    what was said: as they are at both ends."""
    rng, off, error = np.random.default_rng(6), 2.0**-12, 0.0 if gain else 2.0**-18
    w = rounded(rng.standard_normal(COUNT), dtype)
    given = (1 + 0.1 * rng.standard_normal(COUNT)) if gain else 0.1 * rng.standard_normal(COUNT)
    out = [np.empty_like(w)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_ROOM", 1)
        made = fused_change.change(w, dtype, Change(given, gain=gain, error=error), [Times(0.7, off)], out, (5, 3))
    assert made is not None
    left = set(made[0].open.tolist())
    assert left and (len(left) < COUNT or dtype == "F32")
    for i, (old, h) in enumerate(zip(doubles(w, dtype).tolist(), given.tolist(), strict=True)):
        change = Fraction(old) * Fraction(h) - Fraction(old) if gain else Fraction(h)
        for sign in (-1, 1):
            for other in (-1, 1):
                t = Fraction(0.7) * (1 + sign * Fraction(off))
                if i not in left:
                    require(dtype, w, out[0], (i,), Fraction(old) + t * (change + other * Fraction(error)))


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_to_which_nothing_is_added_are_known(dtype: str, gain: bool) -> None:
    """However far what it is multiplied with is off."""
    w = rounded(np.where(np.arange(COUNT) % 2, -0.0, 0.0), dtype)
    given = Change(np.full(COUNT, 1.5), gain=True) if gain else Change(np.zeros(COUNT), np.zeros(COUNT))
    for level in ALL:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused_change, "FUNCTIONS", compiled.functions(level))
            out = [np.empty_like(w)]
            made = fused_change.change(w, dtype, given, [Times(0.3, 2.0**-20)], out, (5, 3))
        assert made is not None and not len(made[0].open) and made[0].changed == 0
        assert out[0].tobytes() == w.tobytes()


def test_sums_over_a_sample() -> None:
    rng = np.random.default_rng(7)
    w = rounded(rng.standard_normal(COUNT), "BF16")
    h, old, out = rng.standard_normal(COUNT) * 0.01, doubles(w, "BF16"), [np.empty_like(w)]
    for given, delta in ((Change(h), 0.3 * h), (Change(1 + h, gain=True), 0.3 * (old * (1 + h) - old))):
        made = fused_change.change(w, "BF16", given, [Times(0.3)], out, (5, 3))
        assert made is not None
        kept = ((doubles(out[0], "BF16") - old) * delta)[1::3].sum()
        assert made[0].kept == pytest.approx(kept, rel=1e-9)
        assert made[0].update == pytest.approx((delta * delta)[1::3].sum(), rel=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_left_to_others(dtype: str) -> None:
    rng = np.random.default_rng(8)
    w, h, out = rounded(rng.standard_normal(200), dtype), rng.standard_normal(200), [np.empty(200, np.dtype("u2"))]
    out = [np.empty_like(w)]
    for bad in (np.nan, np.inf, BY_DTYPE[dtype].largest):
        numbers = doubles(w, dtype)
        numbers[199] = bad
        assert fused_change.change(rounded(numbers, dtype), dtype, Change(h), [Times(1.0)], out, (0, 8)) is None
    for bad in (np.nan, np.inf, 2.0**600):
        for gain in (False, True):
            other = np.where(np.arange(200) == 7, bad, h)
            assert fused_change.change(w, dtype, Change(other, gain=gain), [Times(1.0)], out, (0, 8)) is None
    for t in (0.0, np.nan, np.inf, 2.0**-300):
        assert fused_change.change(w, dtype, Change(h), [Times(t)], out, (0, 8)) is None
    assert fused_change.change(w, dtype, Change(h, error=np.inf), [Times(1.0)], out, (0, 8)) is None
    assert fused_change.change(w, dtype, Change(h, error=1.0), [Times(1.0)], out, (0, 8)) is None  # nearly all is open


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 5, 31, 32, 33, 130])
def test_nothing_is_written_beside_the_block(dtype: str, count: int) -> None:
    rng = np.random.default_rng(9)
    w, h = rounded(rng.standard_normal(count), dtype), rng.standard_normal(count)
    for level in ALL:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused_change, "FUNCTIONS", compiled.functions(level))
            room = np.full(count + 64, 7, w.dtype)
            made = fused_change.change(w, dtype, Change(h, h * 2.0**-60), [Times(1.0)], [room[32 : 32 + count]], (0, 8))
        assert made is not None and (room[:32] == 7).all() and (room[32 + count :] == 7).all()
        assert room[32 : 32 + count].tobytes() == rounded(doubles(w, dtype) + h, dtype).tobytes()
