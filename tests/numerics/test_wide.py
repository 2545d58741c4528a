"""Roots, norms and exponentials against decimals of 150 digits."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from adaptertool.numerics.wide import exponential, root, softmax, split, squares

NUMBERS = [5e-324, 1e-300, 2.0**-52, 0.1, 1 / 3, 1.0, 2.0, 3.0, 1 + 2.0**-52, 1e10, 2.0**127, 1.7e308]


@pytest.fixture(autouse=True)
def _digits() -> object:
    with decimal.localcontext(prec=150) as context:
        yield context


def exactly(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)


@pytest.mark.parametrize("number", NUMBERS)
def test_root(number: float) -> None:
    for own in (Fraction(number), Fraction(number) / 7):
        expected = exactly(own).sqrt()
        assert abs(exactly(root(own)) - expected) <= expected * Decimal(2) ** -120
    assert root(Fraction(0)) == 0


@pytest.mark.parametrize("number", [0.0, -1e-300, -(2.0**-30), -0.1, -1.0, -17.25, -100.7, -199.9, -1e30])
def test_exponential(number: float) -> None:
    expected = exactly(Fraction(number)).exp() if number > -1e6 else Decimal(0)
    assert abs(exactly(exponential(Fraction(number))) - expected) <= Decimal(2) ** -280


def test_softmax() -> None:
    rng = np.random.default_rng(0)
    for numbers in ([1.0], [3.0, 3.0], [1e38, -1e38], rng.standard_normal(5).tolist()):
        found = softmax(numbers)
        powers = [(exactly(Fraction(x)) - exactly(Fraction(max(numbers)))) for x in numbers]
        powers = [power.exp() if power > -10000 else Decimal(0) for power in powers]
        for one, power in zip(found, powers, strict=True):
            assert abs(exactly(one) - power / sum(powers)) <= Decimal(2) ** -270


@pytest.mark.parametrize("size", [1.0, 1e-150, 1e150, 2.0**-1060])
def test_squares(size: float) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((4, 33)) * size * 2.0 ** rng.integers(-20, 1, (4, 33))
    rows[1] = 0
    rows[2, 5] = math.nan
    found = squares(rows)
    for row, one in zip(rows, found, strict=True):
        if not np.isfinite(row).all():
            assert one == 0
            continue
        exact = sum((Fraction(x) ** 2 for x in row.tolist()), Fraction(0))
        assert abs(one - exact) <= exact / 2**104
    assert squares(np.zeros((1, 0))) == [0]


@pytest.mark.parametrize("number", NUMBERS[1:])
def test_split(number: float) -> None:
    for own in (Fraction(number), Fraction(number) / 3):
        high, low = split(own)
        assert abs(Fraction(high) + Fraction(low) - own) <= own / 2**106 + Fraction(1, 2**1074)
    assert split(Fraction(2) ** 1023)[0] == 2.0**1023
    assert split(Fraction(-2) ** 1025) == (-math.inf, 0.0)
