"""Cosines and sines in double-double, against integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from circles import cosine_and_sine

from adaptertool.numerics.angles import cosines_and_sines

RNG = np.random.default_rng(0)
HALF_PI = np.pi / 2


@pytest.mark.parametrize(
    "angles",
    [
        [0.0, -0.0, 1e-300, 5e-324, -1e-30, 0.5, 0.78, 0.7800001, -0.785, 0.7854, 1.0, -1.0],
        [k * HALF_PI for k in range(-9, 10)],
        [np.nextafter(k * HALF_PI / 2, up) for k in range(-9, 10) for up in (-np.inf, np.inf)],
        RNG.standard_normal(200),
        RNG.standard_normal(50) * 1e6,
        RNG.standard_normal(20).astype(np.float32).astype(float) * 2.0**100,
        [6381956970095103.0 * 2.0**797, 1.7976931348623157e308, 2.0**1023],
    ],
)
def test_they_are_within_their_error(angles: list[float]) -> None:
    some = np.array(angles)
    found = cosines_and_sines(some)
    for place, angle in enumerate(some.tolist()):
        for made, exact in zip(found, cosine_and_sine(angle), strict=True):
            value = Fraction(float(made.high[place])) + Fraction(float(made.low[place]))
            assert abs(value - exact) < 2.0**-103
            if abs(angle) < 0.78 and made is found[1]:
                assert abs(value - exact) <= abs(exact) * 2.0**-103 + Fraction(2) ** -1074


def test_what_is_not_finite_has_none() -> None:
    found = cosines_and_sines(np.array([0.0, np.inf, -np.inf, np.nan]))
    for made, first in zip(found, (1, 0), strict=True):
        assert made.high[0] == first and np.isnan(made.high[1:]).all()
