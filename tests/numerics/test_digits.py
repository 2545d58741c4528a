"""Long numbers: sums and products are exact, quotients and roots within their error, roundings correct; against
rationals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from long_numbers import errors_of, exact, values_of

from adaptertool.numerics.digits import Digits
from adaptertool.numerics.digits_rounded import ends, quotient, root
from adaptertool.numerics.places import LEAST_ERROR, MOST_PLACES, split_number
from adaptertool.numerics.rounding import to_nearest, to_odd

RANGES = [0, 40, 150, 300]


def numbers(seed: int, reach: int, *shape: int) -> Any:
    """Random float64 of random exponents, with zeros among them."""
    random = np.random.default_rng(seed)
    found = random.standard_normal(shape) * np.ldexp(1.0, random.integers(-reach, reach + 1, shape))
    return np.where(random.random(shape) < 0.1, 0.0, found)


@pytest.mark.parametrize("reach", RANGES)
@pytest.mark.parametrize("seed", range(4))
def test_sums_and_products_are_exact(reach: int, seed: int) -> None:
    a, b, c = (numbers(seed + k, reach, *shape) for k, shape in enumerate([(3, 4), (4, 5), (3, 5)]))
    left, right, rows = map(Digits.of, (a, b, c))
    whole = exact(c) + exact(a) @ exact(b)
    for found, expected in [
        (left, exact(a)),
        (rows + left @ right, whole),
        ((rows + left @ right) * Fraction(3, 1 << 45) - rows, whole * Fraction(3, 1 << 45) - exact(c)),
        (rows * rows[:, 2:3], exact(c) * exact(c[:, 2:3])),
        (rows.T @ left, exact(c.T) @ exact(a)),
        (rows.squares(), (exact(c) ** 2).sum(1)),
        (rows.sum(1), exact(c).sum(1)),
        (left.reshape(-1, 1, 4) @ left.reshape(-1, 4, 1), (exact(a) ** 2).sum(1).reshape(-1, 1, 1)),
    ]:
        assert found.error is None
        assert found.shape == expected.shape
        assert (values_of(found) == expected).all()


def test_more_products_than_fit_one_digit() -> None:
    """Sums are then taken in parts."""
    full = np.full((2, 40_000), (2.0**19 - 1) * (1 + 2.0**-20 + 2.0**-40))
    number = Digits.of(full)
    expected = 40_000 * Fraction(full[0, 0]) ** 2
    assert (values_of(number @ number.T) == expected).all()
    assert (values_of(number.squares()) == expected).all()


def test_a_view_writes_to_what_it_is_of() -> None:
    stored = numbers(1, 40, 4, 6)
    number = Digits.of(stored)
    part = number[1:3, 2:]
    part += Digits.of(stored[1:3, 2:])
    turned = number.T
    turned *= Fraction(1, 2)
    some = number[:]
    some -= Digits.of(stored)
    expected = exact(stored)
    expected[1:3, 2:] *= 2
    assert (values_of(number) == expected / 2 - exact(stored)).all()
    kept = number.copy()
    kept *= Fraction(3)
    assert (values_of(number) == expected / 2 - exact(stored)).all()


@pytest.mark.parametrize("reach", RANGES)
@pytest.mark.parametrize("seed", range(4))
def test_errors_hold_the_value(reach: int, seed: int) -> None:
    """Of quotients and roots, and of all that is made of them."""
    x, y, z = (numbers(seed + k, reach, *shape) for k, shape in enumerate([(5, 3), (5, 1), (3, 2)]))
    y = np.where(y == 0, 1.0, abs(y))
    q, r = quotient(Digits.of(x), Digits.of(y)), root(Digits.of(y))
    ratio, factor = exact(x) / exact(y), exact(z)
    for found, expected in [
        (q, ratio),
        (q * q - Digits.of(x), ratio * ratio - exact(x)),
        (q @ Digits.of(z), ratio @ factor),
        (Digits.of(z).T @ q.T, factor.T @ ratio.T),
        (q.squares(), (ratio * ratio).sum(1)),
        (quotient(q, Digits.of(y)), ratio / exact(y)),
        (quotient(Digits.of(x), quotient(Digits.of(y), Digits.of(3 * np.ones((1, 1))))), 3 * ratio),
    ]:
        assert (abs(values_of(found) - expected) <= errors_of(found)).all()
        near = np.vectorize(float)(abs(values_of(found)))
        assert (np.vectorize(float)(errors_of(found)) <= near * 2.0**-190 + 2.0**-150).all() or reach > 40
    low, high = values_of(r) - errors_of(r), values_of(r) + errors_of(r)
    assert (low**2 <= exact(y)).all()
    assert (high**2 >= exact(y)).all()
    again = root(r * r)  # of what has an error
    assert (values_of(again) - errors_of(again) <= high).all()
    assert (values_of(again) + errors_of(again) >= low).all()


def test_what_comes_out_even_is_exact() -> None:
    y = abs(numbers(3, 40, 5, 1)) + 1.0
    number = Digits.of(y) * Digits.of(y[::-1])
    assert root(number * number).error is None
    assert (values_of(root(number * number)) == values_of(number)).all()
    assert quotient(number * Digits.of(y), number).error is None


def test_of_0_and_of_no_numbers_nothing_is_known() -> None:
    """Beside others, of which all is known."""
    y = np.array([[0.0], [4.0]])
    for found in (root(Digits.of(y)), quotient(Digits.of(np.ones((2, 1))), Digits.of(y))):
        assert found.error is not None
        assert found.error.tolist() == [[np.inf], [0.0]]
    found = Digits.of(np.array([np.inf, np.nan, 2.0**1001, 1.5]))
    assert found.error is not None
    assert found.error.tolist() == [np.inf, np.inf, np.inf, 0.0]
    assert ends(found * found, odd=True)[2].tolist() == [False, False, False, True]


def test_what_is_dropped_is_an_error() -> None:
    """Numbers that are too far apart for one array, also in sums of what was exact."""
    apart = np.array([2.0**900, 2.0**-700, 1.0])
    far = Digits.of(apart)
    total = Digits.of(np.full(3, 2.0**-60))
    for _ in range(4):
        total = total * total + Digits.of(np.array([1.0, 0.0, 2.0**40]))
    expected = exact(np.full(3, 2.0**-60))
    for _ in range(4):
        expected = expected**2 + exact(np.array([1.0, 0.0, 2.0**40]))
    for found, value in [(far, exact(apart)), (far * far, exact(apart) ** 2), (total, expected)]:
        assert len(found.places) <= MOST_PLACES
        assert (abs(values_of(found) - value) <= errors_of(found)).all()
    assert far.error is not None
    assert far.error[1] == LEAST_ERROR


def spread(count: int, high: int, low: int) -> Any:
    """Numbers of 53 bits from 2^high down to 2^low, (count, 1): they fill each place between."""
    powers = np.linspace(high, low, count).round()[:, None]
    return (1 + np.random.default_rng(count).random((count, 1))) * 2.0**powers


def test_squares_have_the_error_of_what_is_dropped() -> None:
    """Also of rows that are exact, beside one that is not."""
    rows = spread(40, 480, -150)
    number = Digits.of(rows)
    assert number.error is None
    found = Digits(number.shape, number.places, number.reach, np.where(np.arange(40) == 0, 2.0**100, 0.0)[:, None])
    squares = found.squares()
    assert len(squares.places) == MOST_PLACES
    assert (abs(values_of(squares) - exact(rows)[:, 0] ** 2) <= errors_of(squares)).all()


def test_quotients_have_the_error_of_what_is_dropped() -> None:
    rows = spread(60, 990, -300)
    found = quotient(Digits.of(rows), Digits.of(np.full((1, 1), 3.0)))
    assert len(found.places) == MOST_PLACES
    assert (abs(values_of(found) - exact(rows) / 3) <= errors_of(found)).all()


@pytest.mark.parametrize("odd", [False, True])
def test_ends_have_more_places_than_are_kept(odd: bool) -> None:
    rows = spread(60, 990, -346)
    number = Digits.of(rows)
    assert len(number.places) >= MOST_PLACES and number.error is not None
    below, above, known = ends(number, odd=odd)
    rounded = np.vectorize(to_odd if odd else to_nearest, otypes=[float])(exact(rows))
    assert known.all() and ((below <= rounded) & (rounded <= above)).all()
    assert (below == above)[:40].all() and below[-1] < above[-1]


def test_numbers_beyond_float64_are_not_known_and_not_warned_of() -> None:
    number = Digits.of(np.array([[2.0**900, -(2.0**900)], [1.0, 2.0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        third = quotient(number, Digits.of(np.full((1, 1), 3.0)))
        found = third * third * third
        below, above, known = ends(found, odd=False)
    assert found.error is not None
    assert known.tolist() == [[False, False], [True, True]]
    assert (below[1] == above[1]).all()


def test_a_bound_does_not_vanish() -> None:
    """Products of errors and of numbers that float64 takes for 0."""
    tiny = Digits.of(np.full((2, 1), 2.0**-600))
    rough = Digits((2, 1), {}, error=np.full((2, 1), LEAST_ERROR))
    for found in (rough * (tiny * tiny), rough * rough, rough * tiny, (rough * tiny) * (tiny * tiny)):
        assert found.error is not None
        assert (found.error >= LEAST_ERROR).all()


def beside(middle: Fraction, power: int) -> list[Fraction]:
    return [middle + side * Fraction(2) ** power for side in (-1, 1)]


NEXT_TO = [
    Fraction(1) + Fraction(2) ** -53,  # a middle of float64, from an even number to an odd one
    Fraction(1) + 3 * Fraction(2) ** -53,
    Fraction(1) - Fraction(2) ** -54,  # below a power of two
    Fraction(1),
    Fraction(0),
    Fraction(2) ** -900 * (1 + Fraction(2) ** -53),
]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("power", [-40, -60, -90, -110, -300, -700])
def test_rounded_correctly_next_to_middles(power: int, odd: bool) -> None:
    """Each value by itself, and turned around; in sums that cancel to it."""
    for middle in NEXT_TO:
        for value in [middle, *beside(middle, power)]:
            for one in (value, -value):
                number = Digits((1,), {place: np.array([digit]) for place, digit in split_number(one).items()})
                big = Digits.of(np.array([3.0 * 2.0**70]))
                sides: list[Callable[[], Digits]] = [lambda n=number: n, lambda n=number, b=big: n + b - b]
                for made in sides:
                    below, above, known = ends(made(), odd=odd)
                    expected = (to_odd if odd else to_nearest)(one)
                    assert known[0]
                    assert below[0] == above[0] == expected, (middle, one)
                    assert below[0] != 0 or math.copysign(1, below[0]) == (-1 if one < 0 else 1)


@pytest.mark.parametrize("odd", [False, True])
def test_ends_hold_what_has_an_error(odd: bool) -> None:
    x, y = numbers(7, 10, 50, 3), abs(numbers(8, 10, 50, 1)) + 0.1
    number = quotient(Digits.of(x), Digits.of(y))
    below, above, known = ends(number, odd=odd)
    expected = np.vectorize(to_odd if odd else to_nearest, otypes=[float])(exact(x) / exact(y))
    assert known.all()
    assert (below == expected).all()
    assert (above == expected).all()
    rough = Digits(number.shape, number.places, number.reach, np.full(number.shape, 2.0**-30))
    below, above, _ = ends(rough, odd=odd)
    assert (below < expected).all()
    assert (above > expected).all()
