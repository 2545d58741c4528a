"""Functions of our own, against mpmath at 200 bits."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import pytest

from adaptertool.numerics import elementary

ULP = 2.0**-52
DRAW = np.random.default_rng(0)
NEAR_ZERO, NEAR_ONE = DRAW.random(100) * 1e-9, 1 - DRAW.random(100) * 1e-10


def errors(ours: Callable[[np.ndarray], np.ndarray], theirs: Callable[..., object], x: np.ndarray) -> np.ndarray:
    """The difference of each value, and the value, float64 (2, n)."""
    with mpmath.workprec(200):
        wanted = [mpmath.mpf(theirs(mpmath.mpf(float(one)))) for one in x]
        apart = [float(abs(mpmath.mpf(float(own)) - want)) for own, want in zip(ours(x), wanted, strict=True)]
        return np.array([apart, [float(abs(want)) for want in wanted]])


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("exp", np.concatenate([-DRAW.random(300) * 30, -DRAW.random(200) * 700, -NEAR_ZERO, [0.0, 1.0, 20.0]])),
        ("log", np.concatenate([np.exp(3 * DRAW.standard_normal(400)), 1 + NEAR_ZERO, NEAR_ONE, [1.0, 5e-324, 1e308]])),
        ("acos", np.concatenate([DRAW.uniform(-1, 1, 400), NEAR_ONE, -NEAR_ONE, NEAR_ZERO, [1.0, -1.0, 0.0]])),
    ],
)
def test_within_four_units_in_the_last_place(name: str, x: np.ndarray) -> None:
    apart, wanted = errors(getattr(elementary, name), getattr(mpmath, name), x)
    assert (apart <= 4 * ULP * wanted).all()


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_within_a_fixed_distance(name: str) -> None:
    x = np.concatenate(
        [3 * DRAW.standard_normal(400), 1e4 * DRAW.standard_normal(100), NEAR_ZERO, [0.0, np.pi, -np.pi]]
    )
    apart, _ = errors(getattr(elementary, name), getattr(mpmath, name), x)
    assert (apart <= 2 * ULP).all()


def test_the_ends_of_exp() -> None:
    assert elementary.exp(np.array([-1e4, -800.0]))[0] <= 5e-324 and elementary.exp(np.array([0.0])) == [1.0]
