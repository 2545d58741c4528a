"""Arithmetic in double-double: the interval that each number has holds the exact result, at every level of the kernel
and in numpy, with the same bits; and it is narrow, or nothing where nothing was dropped."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from adaptertool.numerics import compiled, double_double
from adaptertool.numerics.double_double import DoubleDouble

LEVELS = [None, *compiled.levels()]
THIRD = Fraction(1, 3)
fractions: Any = np.frompyfunc(Fraction, 1, 1)


@pytest.fixture
def at_level(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda level: monkeypatch.setattr(double_double, "FUNCTIONS", compiled.functions(level))


def numbers(rng: np.random.Generator, shape: tuple[int, ...], powers: int) -> Any:
    """Of any sign, between 2^-powers and 2^powers or so, with zeros."""
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(-powers, powers + 1, shape)
    values[rng.random(shape) < 0.1] = 0
    return values


def pairs(rng: np.random.Generator, shape: tuple[int, ...], powers: int) -> DoubleDouble:
    high = numbers(rng, shape, powers)
    return DoubleDouble(np.stack([high, high * rng.standard_normal(shape) * 2.0**-54, np.zeros(shape)]))


def exactly(number: DoubleDouble) -> Any:
    return fractions(number.high) + fractions(number.low)


def require(found: DoubleDouble, expected: Any) -> None:
    """Every number is within its error; one that is not known says so."""
    for place in np.ndindex(found.shape):
        high, low, error = (float(part[place]) for part in found.parts)
        if np.isfinite(high + low + error):
            assert abs(Fraction(high) + Fraction(low) - expected[place]) <= Fraction(error), (place, high, low, error)


def narrow(found: DoubleDouble, digits: int = 95) -> None:
    sizes = abs(found.high)
    assert (found.error <= sizes * 2.0**-digits).all()


@pytest.mark.parametrize("powers", [1, 40, 300])
def test_every_operation_is_within_its_error(powers: int, at_level: Any) -> None:
    rng = np.random.default_rng(powers)
    x, y, factor = pairs(rng, (7, 37), powers), pairs(rng, (7, 37), powers), numbers(rng, (5, 37), powers)
    left, row = DoubleDouble.of(numbers(rng, (7, 5), powers)), DoubleDouble.of(factor)
    batch = DoubleDouble.of(factor.T.reshape(37, 5, 1))
    made: list[list[DoubleDouble]] = []
    for level in LEVELS:
        at_level(level)
        scaled = left * THIRD
        each = DoubleDouble(np.repeat(scaled.parts[:, 2:3, None], 37, axis=1).reshape(3, 37, 1, 5))
        steps = [x + y, x - y, x * y, x * y[:, :1], x * THIRD, left @ row, scaled @ row, x.sum(1), each @ batch]
        steps += [x.plus_product(left, row), x.plus_product(scaled, row), x.squares()]
        own = x.copy()
        own += y
        own *= y
        own -= x * THIRD
        own.add_product(scaled, row)
        made.append([*steps, own])
        a, b, product = exactly(x), exactly(y), fractions(left.high) @ fractions(factor)
        exact = [a + b, a - b, a * b, a * b[:, :1], a / 3, product, product / 3, a.sum(1)]
        exact += [(product / 3)[2].reshape(37, 1, 1), a + product, a + product / 3, (a * a).sum(1)]
        exact += [(a + b) * b - a / 3 + product / 3]
        for found, expected in zip(made[-1], exact, strict=True):
            require(found, expected)
        if powers == 1:
            for found in (steps[2], steps[3], steps[4]):
                narrow(found)
    for other in made[1:]:
        for one, two in zip(made[0], other, strict=True):
            known = np.isfinite(one.parts).all(0) & np.isfinite(two.parts).all(0)
            assert np.array_equal(one.parts[:, known], two.parts[:, known])
            assert known.all() or powers == 300  # where splitting by multiplication overflows, and fma does not


def test_parts_are_changed_in_place(at_level: Any) -> None:
    """As rows and columns of a view are, and what is stored transposed."""
    rng = np.random.default_rng(5)
    x, y = pairs(rng, (6, 8), 3), pairs(rng, (3, 4), 3)
    for level in LEVELS:
        at_level(level)
        own = x.copy()
        part = own[1:4, ::2].T
        part += y.T
        part *= THIRD
        expected = exactly(x)
        expected[1:4, ::2] = (expected[1:4, ::2] + exactly(y)) / 3
        require(own, expected)
        own[0:3, 4:] = y
        assert np.array_equal(own.parts[:, :3, 4:], y.parts)


def test_quotients_and_roots(at_level: Any) -> None:
    rng = np.random.default_rng(2)
    for level in LEVELS:
        at_level(level)
        x, y = pairs(rng, (60, 1), 40), pairs(rng, (60, 1), 40)
        y = DoubleDouble(np.where(y.high > 0, y.parts, -y.parts))
        y[y.high[:, 0] == 0] = DoubleDouble.of(np.ones((int((y.high == 0).sum()), 1)))
        quotient, root = x / y, y.sqrt()
        require(quotient, exactly(x) / exactly(y))
        narrow(quotient)
        narrow(root)
        for place, square in np.ndenumerate(exactly(y)):
            middle, error = exactly(root)[place], Fraction(root.error[place])
            assert max(0, middle - error) ** 2 <= square <= (middle + error) ** 2
        whole = DoubleDouble.of(np.array([[25.0], [2.25], [0.0]]))
        assert np.array_equal(whole.sqrt().parts[:, :2, 0], [[5, 1.5], [0, 0], [0, 0]])
        assert whole.sqrt().parts[:2, 2, 0].tolist() == [0, 0]
        assert not np.isfinite(whole.sqrt().parts[:, 2]).all()  # a norm of 0 is for others


def test_nothing_dropped_is_no_error(at_level: Any) -> None:
    """So that middles are found, and zeros."""
    rng = np.random.default_rng(3)
    x, few = DoubleDouble.of(numbers(rng, (9, 20), 8)), rng.integers(-64, 64, (2, 9, 20)) / 8
    for level in LEVELS:
        at_level(level)
        found = (x - DoubleDouble.of(few[0])) * Fraction(1, 4) + DoubleDouble.of(few[1])
        assert not found.error.any()
        product = DoubleDouble.of(few[0]) * Fraction(3, 8) @ DoubleDouble.of(few[1].T.copy())
        assert not product.error.any() and not product.low.any()
        nothing = x - x
        assert not nothing.parts.any()
        assert not (DoubleDouble.of(np.zeros((9, 3))) * THIRD @ DoubleDouble.of(numbers(rng, (3, 20), 8))).parts.any()


@pytest.mark.parametrize("scale", [Fraction(2), Fraction(9, 16), Fraction(7, 32)])
def test_sums_of_exact_products_are_exact_where_two_numbers_hold_them(scale: Fraction, at_level: Any) -> None:
    """So that middles of float64 are known for such: factors of float32, times a number of few bits."""
    rng = np.random.default_rng(6)
    rows = DoubleDouble.of(rng.standard_normal((9, 300)) * 2.0**20)
    b, a = (rng.standard_normal(shape).astype(np.float32).astype(np.float64) for shape in ((9, 7), (7, 300)))
    made = []
    for level in LEVELS:
        at_level(level)
        made.append(rows.plus_product(DoubleDouble.of(b) * scale, DoubleDouble.of(a)))
        assert not made[-1].error.any() and made[-1].low.any()
        assert (exactly(made[-1]) == exactly(rows) + fractions(b) @ fractions(a) * scale).all()
        wide = DoubleDouble.of(b + 2.0**-50)  # products with more bits
        require(rows.plus_product(wide, DoubleDouble.of(a)), exactly(rows) + fractions(wide.high) @ fractions(a))
    assert all(np.array_equal(made[0].parts, other.parts) for other in made[1:])


def test_what_is_nearest(at_level: Any) -> None:
    """What the error leaves open is told, and what is 0, or no number."""
    rng = np.random.default_rng(7)
    x = pairs(rng, (9, 100), 30)
    x.parts[2] = abs(x.high) * 2.0 ** rng.integers(-110, -50, x.shape) * (rng.random(x.shape) < 0.8)
    x.parts[1, :3] = x.high[:3] * 2.0**-53  # middles
    x.parts[0, 4, :4], x.parts[2, 5, :3] = [np.inf, -np.inf, np.nan, 1.7e308], [np.inf, np.nan, 1e308]
    made = []
    for level in LEVELS:
        at_level(level)
        out = np.empty(x.high.size)
        left = x.nearest(out)
        made.append(left)
        for place in set(range(out.size)) - set(left.tolist()):
            high, low, error = (Fraction(float(part.flat[place])) for part in x.parts)
            assert float(high + low - error) == float(high + low + error) == out[place] != 0
        surely = (x.error == 0) & (x.high != 0) & np.isfinite(x.high)
        assert not surely.reshape(-1)[left].any() and 0 < len(left) < out.size
    assert all(np.array_equal(made[0], other) for other in made[1:])


def test_what_underflows_is_counted(at_level: Any) -> None:
    small = np.array([[2.0**-600, 2.0**-500, 2.0**-1074, 1.0]]) * (1 + 2.0**-52)
    for level in LEVELS:
        at_level(level)
        x = DoubleDouble.of(small)
        require(x * x, exactly(x) * exactly(x))
        require(x * THIRD * x, exactly(x) * exactly(x) / 3)
        require(x.T @ x, exactly(x).T @ exactly(x))
        require(x.squares(), (exactly(x) * exactly(x)).sum(1))
        rows = DoubleDouble.of(np.repeat(small, 4, axis=0))
        require(rows.plus_product(x.T, x), exactly(rows) + exactly(x).T @ exactly(x))
        assert ((x * x).error[0, :2] > 0).all()


def test_a_rational_of_any_size() -> None:
    for number in (THIRD, Fraction(2) ** -1080 / 3, Fraction(10) ** 308 / 7, Fraction(3, 4), -THIRD):
        found = DoubleDouble.near(number)
        require(found, np.array(number))
    assert not np.isfinite(DoubleDouble.near(Fraction(10) ** 400).high)


@pytest.mark.parametrize("odd", [False, True])
def test_ends_are_beyond_all_values(odd: bool, at_level: Any) -> None:
    """Rounded to nearest they are those of the ends; to odd, on the same side of what has 51 bits or less."""
    rng = np.random.default_rng(4)
    x = pairs(rng, (40, 50), 30)
    x.parts[2] = abs(x.low) * 2.0 ** rng.integers(-60, 3, x.shape) * (rng.random(x.shape) < 0.8)
    x.parts[1, :5] = x.high[:5] * 2.0**-53  # middles
    made = []
    for level in LEVELS:
        at_level(level)
        made.append(x.ends(odd=odd))
        for ends, side in zip(made[-1], (-1, 1), strict=True):
            for place, value in np.ndenumerate(exactly(x) + side * fractions(x.error)):
                end = Fraction(ends[place])
                if not odd:
                    assert (end - Fraction(float(value))) * side >= 0
                elif end != value:
                    assert int(ends[place].view(np.int64)) & 1
                    assert (end > value) == (side > 0) or Fraction(float(value)) != value
    assert all(np.array_equal(one, two) for other in made[1:] for one, two in zip(made[0], other, strict=True))


@pytest.mark.parametrize("error", [np.inf, np.nan])
@pytest.mark.parametrize("high", [1.0, 1 / 3])
def test_products_with_what_is_not_known_are_not_known(error: float, high: float) -> None:
    parts = np.zeros((3, 2, 2))
    parts[0], parts[2, 0, 0] = high, error
    product = DoubleDouble(parts) @ DoubleDouble.of(np.ones((2, 3)))
    assert product.known.tolist() == [[False] * 3, [True] * 3]
