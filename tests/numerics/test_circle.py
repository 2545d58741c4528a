"""Cosines and sines against decimals of 60 digits."""

from __future__ import annotations

import decimal
from fractions import Fraction

import pytest
from circles import cosine, pi

from adaptertool.numerics.circle import circle
from adaptertool.numerics.rounding import to_nearest


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 8, 12, 43, 97, 360, 4096, 11008])
def test_every_value_is_the_nearest(count: int) -> None:
    with decimal.localcontext(prec=80):
        turn = 2 * pi()
        cosines, sines = circle(count)
        for j in range(0, count, max(1, count // 97)):
            for found, angle in ((cosines[j], turn * j / count), (sines[j], turn * j / count - turn / 4)):
                exact = round(cosine(abs(angle)), 60)  # zeros and halves are such
                assert found == to_nearest(Fraction(exact)), (j, found, exact)


def test_zeros_halves_and_ones_are_exact() -> None:
    cosines, sines = circle(12)
    assert list(cosines[[0, 2, 3, 4, 6, 8, 9, 10]]) == [1, 0.5, 0, -0.5, -1, -0.5, 0, 0.5]
    assert list(sines[[0, 1, 3, 5, 6, 7, 9, 11]]) == [0, 0.5, 1, 0.5, 0, -0.5, -1, -0.5]
