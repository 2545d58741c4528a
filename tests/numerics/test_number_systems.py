"""The exact number systems: integers rounded to odd, intervals; against rationals."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import round_fraction
from rationals import NAMES, OUTPUTS

from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics.interval import Interval, intervals, roots
from adaptertool.numerics.rounding import to_odd

# The number systems.

floats = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30)


@settings(max_examples=300, deadline=None)
@given(st.fractions(), st.integers(-200, 200))
def test_to_odd_keeps_the_side(number: Fraction, power: int) -> None:
    value = number * Fraction(2) ** power
    got = to_odd(value)
    for dtype in OUTPUTS:
        found = doubles(rounded(np.array([got]), NAMES[dtype]), NAMES[dtype]).item()
        expected = round_fraction(value, dtype)
        if expected is None:
            assert found == math.copysign(math.inf, value)
        else:
            assert Fraction(found) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(floats, min_size=3, max_size=3), st.integers(8, 200))
def test_intervals_hold_the_value(values: list[float], bits: int) -> None:
    a, b, c = (Interval.of(value) for value in values)
    exact = (Fraction(values[0]) + Fraction(values[1])) * Fraction(values[2]) - Fraction(values[0])
    found = (a + b) * c - a
    assert found.low == found.high == exact
    root = Interval.of(abs(exact)).sqrt(bits)
    assert root.low**2 <= abs(exact) <= root.high**2
    assert root.high - root.low <= root.low * Fraction(1, 1 << (bits - 4)) or exact == 0
    both = roots(intervals(torch.tensor([4.0, 2.25], dtype=torch.float64).numpy()), bits)
    assert [one.low for one in both] == [one.high for one in both] == [2, Fraction(3, 2)]
