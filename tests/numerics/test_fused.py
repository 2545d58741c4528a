"""Blocks made in one visit: every element that the kernel does not leave open is the correctly rounded one, at every
level of instructions, by an oracle of rationals (roots to 120 digits)."""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from in_one_visit import ALL, ALPHAS, DTYPES, exact, factors, require, room

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics import compiled, fused

pytestmark = pytest.mark.skipif(not ALL, reason="no compiled kernel: there was no C compiler")


@pytest.mark.long("dtype")
@pytest.mark.parametrize("how", ["random", "few bits", "wide", "ties"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(how: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_ROOM", 1)
    rng = np.random.default_rng(0)
    # more than a strip of rows, a chain of products, and what is computed at once of columns, and of ranks
    shapes = [(1, 1, 1), (5, 33, 3), (7, 15, 16), (13, 70, 17), (6, 32, 40), (12, 64, 8), (15, 533, 5), (14, 293, 130)]
    for number, (rows, columns, rank) in enumerate(shapes):
        alphas = ALPHAS[number % len(ALPHAS)]
        stored, left, right = factors(how, dtype, rows, columns, rank, rng)
        few = how in ("few bits", "ties")
        packed, scaled = fused.Right.of(right, few_bits=few), fused.Left.of(np.asfortranarray(left), few_bits=few)
        assert packed is not None and scaled is not None
        w, checked = doubles(stored, dtype), rng.choice(rows * columns, min(rows * columns, 150), replace=False)
        values = {place: exact(w, left, right, *divmod(place, columns)) for place in checked.tolist()}
        for level in ALL:
            monkeypatch.setattr(fused, "FUNCTIONS", compiled.functions(level))
            out, untouched = room(stored, len(alphas))
            made = fused.add_product(stored.reshape(-1), dtype, scaled, packed, alphas, out, (0, 1))
            assert made is not None and untouched()
            for alpha, result, one in zip(alphas, out, made, strict=True):
                table = result.reshape(stored.shape)
                assert len(one.open) <= max(2, 0.01 * stored.size) or how != "random"
                assert not (few and alpha in (1.0, -2.0, 0.5)) or not len(one.open)
                assert one.changed == np.count_nonzero(
                    table.view(f"u{table.itemsize}") != stored.view(f"u{table.itemsize}")
                )
                delta = alpha * (left @ right)
                assert one.update == pytest.approx((delta * delta).sum(), rel=1e-4, abs=1e-30)
                assert one.kept == pytest.approx(((doubles(table, dtype) - w) * delta).sum(), rel=1e-3, abs=1e-9)
                for place in set(checked.tolist()) - set(one.open.tolist()):
                    before, change = values[place]
                    require(dtype, stored, table, divmod(place, columns), before + Fraction(alpha) * change)


@pytest.mark.long("dtype")
@pytest.mark.parametrize("how", ["random", "few bits", "narrow norms"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_with_norms(how: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    shapes = [(7, 40, 3), (6, 65, 20), (1, 9, 1), (2, 331, 2)]
    for (rows, columns, rank), alphas, weight in zip(shapes, (*ALPHAS, ALPHAS[0]), (1.0, 0.7, 1.0, 1.0), strict=True):
        stored, left, right = factors("few bits" if how == "few bits" else "random", dtype, rows, columns, rank, rng)
        m = rng.random(rows) * (1e-3 if how == "narrow norms" else 0.3)
        packed, scaled = fused.Right.of(right, few_bits=False), fused.Left.of(left, few_bits=False)
        assert packed is not None and scaled is not None
        w, values = doubles(stored, dtype), {}
        for i in range(rows):
            pairs = [exact(w, left, right, i, j) for j in range(columns)]
            with decimal.localcontext(prec=120):
                square = sum(((a + b) ** 2 for a, b in pairs), Fraction())
                norm = (Decimal(square.numerator) / Decimal(square.denominator)).sqrt()
                ratio = Fraction(m[i]) / Fraction(norm)
            for j in rng.choice(columns, min(columns, 12), replace=False).tolist():
                before, change = pairs[j]
                values[i, j] = before, Fraction(weight) * (ratio * (before + change) - before)
        for level in ALL:
            monkeypatch.setattr(fused, "FUNCTIONS", compiled.functions(level))
            out, untouched = room(stored, len(alphas))
            made = fused.add_product(stored.reshape(-1), dtype, scaled, packed, alphas, out, (0, 1), (m, weight))
            assert made is not None and untouched()
            for alpha, result, one in zip(alphas, out, made, strict=True):
                assert len(one.open) <= 1
                left_open = set(one.open.tolist())
                for (i, j), (before, change) in values.items():
                    if i * columns + j not in left_open:
                        require(dtype, stored, result.reshape(stored.shape), (i, j), before + Fraction(alpha) * change)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_kernel_cannot_do_is_left_to_others(dtype: str) -> None:
    """Numbers that are not finite or too large; a row without a length; factors that are not float32, but
    for LoRA on 16 bits, unless they are long."""
    stored, left, right = factors("random", dtype, 7, 40, 3, np.random.default_rng(2))
    assert fused.Right.of(np.ones((513, 40)) / 3, few_bits=False) is None
    fine = fused.Right.of(right + 2.0**-40, few_bits=False)
    assert fine is not None
    assert fused.Right.of(right * 1e30, few_bits=False) is None and fused.Left.of(left * 1e30, few_bits=False) is None
    assert fused.Left.of(left * 2.0**-450, few_bits=False) is None
    packed, scaled, m = fused.Right.of(right, few_bits=False), fused.Left.of(left, few_bits=False), np.ones(7)
    assert packed is not None and scaled is not None
    numbers, codec = doubles(stored, dtype), BY_DTYPE[dtype]

    def call(changed: Any, *more: Any) -> Any:
        out = [np.empty(stored.size, stored.dtype)]
        return fused.add_product(rounded(changed, dtype).reshape(-1), dtype, scaled, packed, [1.0], out, (0, 8), *more)

    for bad in (np.nan, np.inf, -np.inf, codec.largest):
        changed = numbers.copy()
        changed[5, 39] = bad
        assert call(changed) is None
        if not np.isfinite(bad):  # what is divided by its norm is small again
            assert call(changed, (m, 1.0)) is None
    assert call(numbers) is not None and call(numbers, (m, 1.0)) is not None
    assert (call(numbers, None, 1e-9) is None) == (dtype == "F32") and call(numbers, (m, 1.0), 1e-9) is None
    plain, packed = packed, fine
    assert (call(numbers) is None) == (dtype == "F32") and call(numbers, (m, 1.0)) is None
    packed = plain
    none = fused.Left.of(np.zeros((7, 3)), few_bits=False)
    assert none is not None
    scaled = none
    assert call(np.where(np.arange(7)[:, None] == 2, 0.0, numbers), (m, 1.0)) is None


def test_rows_to_which_nothing_is_added_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sign of their zeros."""
    w = np.where(np.arange(9 * 50).reshape(9, 50) % 3 == 0, -0.0, 1.5)
    left, right = np.zeros((9, 2)), np.ones((2, 50))
    left[4] = 1.0
    packed, scaled = fused.Right.of(right, few_bits=False), fused.Left.of(left, few_bits=False)
    assert packed is not None and scaled is not None
    for dtype in DTYPES:
        for level in ALL:
            monkeypatch.setattr(fused, "FUNCTIONS", compiled.functions(level))
            stored = rounded(w, dtype)
            out = [np.empty(stored.size, stored.dtype)]
            made = fused.add_product(stored.reshape(-1), dtype, scaled, packed, [1.0], out, (0, 8))
            assert made is not None
            others = np.arange(9) != 4
            assert out[0].reshape(9, 50)[others].tobytes() == stored[others].tobytes() and made[0].changed == 50


def pairs(how: str, dtype: str, count: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Two stored arrays. Ordinary numbers do not test error-free transformations: these cancel, or lie far apart."""
    codec = BY_DTYPE[dtype]
    spread = {"BF16": 60, "F16": 12, "F32": 60}[dtype]
    w = rounded(rng.standard_normal(count) * 2.0 ** rng.integers(-spread, spread // 4, count), dtype)
    numbers = doubles(w, dtype)
    other = rng.standard_normal(count)
    if how == "ordinary":
        t = numbers * (1 + 0.01 * other)
    elif how == "cancelling":  # w + α·(t − w) next to nothing for α of 1/3, 2/3, 1/2, −1, 3
        t = numbers * rng.choice([-2.0, -0.5, -1.0, 2.0, 2 / 3], count)
    elif how == "few bits":  # many lie in the middle between two numbers, or next to it
        w = rounded(rng.integers(-64, 65, count) / 16, dtype)
        t = rng.integers(-64, 65, count) / 16
    elif how == "small":  # what float32 loses
        scale = 2.0 ** rng.integers(-24 if dtype == "F16" else -133, 0, count)
        w, t = rounded(rng.integers(-9, 10, count) * scale, dtype), rng.integers(-9, 10, count) * scale
    elif how == "next to each other":
        t = numbers + codec.spacing(numbers) * rng.choice([-1.0, 1.0, 2.0, 3.0], count)
    else:
        t = other * 2.0 ** rng.integers(-spread, spread // 4, count)
        t[::7], numbers[::11], numbers[::13] = 0.0, 0.0, -0.0
        w = rounded(numbers, dtype)
    return w, rounded(t, dtype)


@pytest.mark.long("dtype")
@pytest.mark.parametrize("how", ["ordinary", "cancelling", "few bits", "small", "next to each other", "apart"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mixtures(how: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """w + α·(t − w), also where all but the last bits cancel."""
    monkeypatch.setattr(fused, "_ROOM", 1)
    rng, count = np.random.default_rng(3), 1003
    w, t = pairs(how, dtype, count, rng)
    alphas = (1 / 3, 2 / 3, 0.5, 0.1 + 2.0**-50, -1.0, 3.0, 2.0**-30, 1 - 2.0**-53)
    olds, news = ([Fraction(one) for one in doubles(stored, dtype).tolist()] for stored in (w, t))
    left = []
    for level in ALL:
        monkeypatch.setattr(fused, "FUNCTIONS", compiled.functions(level))
        out = [np.empty(count, w.dtype) for _ in alphas]
        made = fused.blend(w, t, dtype, alphas, out, (5, 3))
        assert made is not None
        left.append([one.open.tolist() for one in made])
        for alpha, result, one in zip(alphas, out, made, strict=True):
            assert len(one.open) <= (0 if how in ("ordinary", "next to each other") else 0.35 * count)
            word = f"u{result.itemsize}"
            assert one.changed == np.count_nonzero(result.view(word) != w.view(word))
            delta = alpha * (doubles(t, dtype) - doubles(w, dtype))
            assert one.update == pytest.approx((delta * delta)[1::3].sum(), rel=1e-9)
            for place in range(0, count, 1 if level == ALL[-1] else 9):
                if place not in left[-1][alphas.index(alpha)]:
                    value = olds[place] + Fraction(alpha) * (news[place] - olds[place])
                    require(dtype, w, result, (place,), value)
    assert all(some == left[0] for some in left)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixtures_part_by_part(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is more than stays in the cache is what its parts are."""
    w, t = pairs("few bits", dtype, 2 * 4096 + 77, np.random.default_rng(5))
    for level in ALL:
        monkeypatch.setattr(fused, "FUNCTIONS", compiled.functions(level))
        whole, parts = np.empty_like(w), np.empty_like(w)
        one = fused.blend(w, t, dtype, [0.3], [whole], (0, 1))
        assert one is not None
        pieces = [slice(first, first + 1003) for first in range(0, w.size, 1003)]
        some = [fused.blend(w[cut], t[cut], dtype, [0.3], [parts[cut]], (0, 1)) for cut in pieces]
        assert whole.tobytes() == parts.tobytes()
        assert one[0].changed == sum(made[0].changed for made in some if made is not None) > w.size / 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixtures_that_are_left_to_others(dtype: str) -> None:
    w, t = pairs("ordinary", dtype, 200, np.random.default_rng(4))
    for bad in (np.nan, np.inf, BY_DTYPE[dtype].largest):
        for number in range(2):
            numbers = [doubles(one, dtype) for one in (w, t)]
            numbers[number][199] = bad
            one, other = (rounded(some, dtype) for some in numbers)
            assert fused.blend(one, other, dtype, [0.5], [np.empty_like(w)], (0, 8)) is None
    for alpha in (1.0, 0.0, 2.0**-70, np.nan):
        assert fused.blend(w, t, dtype, [alpha], [np.empty_like(w)], (0, 8)) is None
