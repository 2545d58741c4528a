"""Counts and sums in one pass: every level of the kernel and numpy give the same, and rationals say that it is so."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import apart, doubles, energy, rounded
from adaptertool.numerics import compiled, statistics
from adaptertool.verification import tolerance

DTYPES = ["BF16", "F16", "F32", "F64"]
LEVELS = [None, *compiled.levels()]  # None is numpy
SIZES = [0, 1, 15, 16, 17, 2047, 2048, 2049, 5000]


def at_all_levels(call: Any) -> Any:
    """What a call gives, which must be the same at all levels."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for level in LEVELS:
            for module in (statistics, tolerance):
                patch.setattr(module, "FUNCTIONS", compiled.functions(level))
            with np.errstate(all="ignore"):
                found.append(call())
    for other in found[1:]:
        for one, two in zip(np.atleast_1d(found[0]), np.atleast_1d(other), strict=True):
            np.testing.assert_array_equal(one, two)
    return found[0]


def stored(dtype: str, size: int, seed: int, *, odd: bool = True) -> Any:
    """Words of all sorts, or near each other; with zeros of both signs, the ends of the range, NaN and infinity."""
    rng, codec = np.random.default_rng(seed), BY_DTYPE[dtype]
    numbers = rounded(rng.standard_normal(size) * 0.02, dtype)
    ends = np.array([0.0, -0.0, codec.smallest, -codec.smallest, codec.largest, -codec.largest, 1.0])
    if dtype == "F64":  # squares stay finite
        ends = ends[[0, 1, 2, 3, 6]]
    places = rng.integers(0, max(size, 1), size // 7)
    numbers[places] = rounded(rng.choice(ends, len(places)), dtype)
    if odd:
        places = rng.integers(0, max(size, 1), size // 50)
        numbers[places] = rounded(rng.choice([math.nan, math.inf, -math.inf], len(places)), dtype)
    return numbers


def near(numbers: Any, seed: int) -> Any:
    """The same, but for some words."""
    rng, other = np.random.default_rng(seed), numbers.copy()
    words = other.view(f"u{other.itemsize}")
    places = rng.integers(0, max(len(words), 1), len(words) // 3)
    words[places] ^= rng.integers(0, 4, len(places)).astype(words.dtype)
    return other


@pytest.mark.long("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("odd", [False, True])
def test_apart(dtype: str, size: int, odd: bool) -> None:
    a = stored(dtype, size, 1, odd=odd)
    for b in (a.copy(), near(a, 2), stored(dtype, size, 3, odd=odd)):
        found = statistics.Apart(*at_all_levels(lambda b=b: apart(a, b, dtype)))
        one, other = doubles(a, dtype), doubles(b, dtype)
        pairs = [(x, y) for x, y in zip(one, other, strict=True) if math.isfinite(x) and math.isfinite(y)]
        differ = BY_DTYPE[dtype].words(a) != BY_DTYPE[dtype].words(b)
        assert found.differ == int(differ.sum()) == at_all_levels(lambda b=b: statistics.differing(a, b))
        assert found.odd == sum(differ & ~(np.isfinite(one) & np.isfinite(other)))
        assert found.lost == sum(np.isfinite(one) & ~np.isfinite(other))
        assert found.largest == max((abs(y - x) for x, y in pairs), default=0.0)
        square = sum((Fraction(y - x) ** 2 for x, y in pairs), Fraction(0))
        assert found.square == pytest.approx(float(square), rel=1e-13)
        size_of = sum((Fraction(x) ** 2 for x in one if math.isfinite(x)), Fraction(0))
        assert found.size == pytest.approx(float(size_of), rel=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_distance_is_counted_in_numbers(dtype: str) -> None:
    """From the least to the largest, and over zero."""
    codec = BY_DTYPE[dtype]
    ends = [-codec.largest, -codec.smallest, -0.0, 0.0, codec.smallest, 1.0, codec.largest]
    order = [int(codec.words(rounded(np.array([abs(x)]), dtype))[0]) * (-1 if x < 0 else 1) for x in ends]
    for x, i in zip(ends, order, strict=True):
        for y, j in zip(ends, order, strict=True):
            a, b = (rounded(np.array([end]), dtype) for end in (x, y))
            with np.errstate(over="ignore"):
                found = statistics.Apart(*at_all_levels(lambda a=a, b=b: apart(a, b, dtype)))
            assert found.distance == abs(i - j)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_all_words_against_each_other(dtype: str) -> None:
    a = np.arange(1 << 16, dtype=np.uint16)
    for shift in (1, 12345, 1 << 15):
        b = np.roll(a, shift)
        found = at_all_levels(lambda b=b: apart(a, b, dtype))
        assert found[0] == 1 << 16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_energy(dtype: str, size: int) -> None:
    a = stored(dtype, size, 4, odd=False)
    found = at_all_levels(lambda: energy(a, dtype))
    assert found == pytest.approx(float(sum((Fraction(x) ** 2 for x in doubles(a, dtype)), Fraction(0))), rel=1e-13)
    if size:
        for end, is_right in ((math.inf, math.isinf), (math.nan, math.isnan)):
            a[size // 2] = rounded(np.array([end]), dtype)[0]
            assert is_right(at_all_levels(lambda: energy(a, dtype)))


def test_sums_do_not_lose_what_is_small() -> None:
    """Many terms of one size: the error of a sum in one row would be larger."""
    ones = np.full(1 << 21, 1.1, np.float64)
    assert energy(ones, "F64") == pytest.approx((1 << 21) * 1.1**2, rel=1e-13)


@pytest.mark.long("dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_drifted(dtype: str, size: int) -> None:
    rng = np.random.default_rng(size)
    before = doubles(stored(dtype, size, 5, odd=False), dtype)
    before[abs(before) > 1e150] = 2.0
    exact = before + rng.standard_normal(size) * 1e-3 * (rng.random(size) < 0.8)
    as_stored = np.where(rng.random(size) < 0.3, before, doubles(rounded(exact, dtype), dtype))
    least = math.ldexp(1.0, BY_DTYPE[dtype].lowest)
    found = statistics.Drifted(*at_all_levels(lambda: statistics.drifted(before, exact, as_stored, least)))
    w, e, s = ([Fraction(x) for x in part] for part in (before, exact, as_stored))
    each = list(zip(w, e, s, strict=True))
    touched = [(a, b, c) for a, b, c in each if a != b]
    assert (found.touched, found.same) == (len(touched), sum(a == c for a, _, c in touched))
    for name, terms in {
        "base": [a * a for a in w],
        "exact": [b * b for b in e],
        "moved": [b * b for _, b, _ in touched],
        "delta": [Fraction(float(b) - float(a)) ** 2 for a, b, _ in each],
        "error": [Fraction(float(c) - float(b)) ** 2 for _, b, c in each],
    }.items():
        assert getattr(found, name) == pytest.approx(float(sum(terms, Fraction(0))), rel=1e-13), name
    along = [Fraction(float(c) - float(a)) * Fraction(float(b) - float(a)) for a, b, c in each]
    room = float(sum(map(abs, along), Fraction(0))) * 1e-13
    assert found.along == pytest.approx(float(sum(along, Fraction(0))), abs=room)
    powers = [max(least, math.ldexp(1.0, math.frexp(abs(b))[1] - 1)) for _, b, _ in each]
    assert found.most == max((float(abs(c - b)) / p for (_, b, c), p in zip(each, powers, strict=True)), default=0.0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (40, 33), (0, 5)])
def test_column_sums(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(6)
    before = rng.standard_normal(shape)
    exact = before + rng.standard_normal(shape) * (rng.random(shape) < 0.5)
    squares, moved, touched = at_all_levels(lambda: np.stack(statistics.column_sums(before, exact)))
    assert squares == pytest.approx((exact**2).sum(0), rel=1e-13)
    assert moved == pytest.approx((exact**2 * (exact != before)).sum(0), rel=1e-13)
    assert (touched == (exact != before).sum(0)).all()


NUMBERS = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1e-45, 5e-324, 65504.0, 3e38, 1e300])


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    st.lists(st.tuples(*[NUMBERS] * 3, NUMBERS | st.sampled_from([math.nan, math.inf])), min_size=1, max_size=40),
    st.sampled_from(DTYPES),
    st.integers(1, 3),
    st.sampled_from([0.0, 2.5, 4.0]),
)
def test_limits(dtype: str, rows: list[Any], through: str, roundings: int, products: float) -> None:
    """The kernel's are those of numpy, element by element, and count what lies outside as numpy does."""
    base, exact, terms, found = (np.array(part, np.float64) for part in zip(*rows, strict=True))
    values = tolerance.Values(base, exact, np.maximum(abs(terms), abs(exact)))
    manner = tolerance.Manner(dtype, through, 2.0**-8, 16, roundings, 1e-7, products)
    limits = at_all_levels(lambda: np.stack(tolerance.limits(values, found, manner)))
    counts, firsts = at_all_levels(lambda: np.array(tolerance.outside(values, found, manner)))
    with np.errstate(all="ignore"):
        odd = ~(abs(found - exact) <= limits)
    assert counts.tolist() == odd.sum(1).tolist()
    assert firsts.tolist() == [int(row.argmax()) if row.any() else len(rows) for row in odd]
