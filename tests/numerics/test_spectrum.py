"""Singular values without vectors, and the ranks that they tell, against dense float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptertool.numerics.lowrank import errors, singular_values, svd_of_product
from adaptertool.numerics.spectrum import entropy_rank, stable_rank

SHAPES = [(1, 1, 1), (5, 9, 3), (300, 40, 4), (40, 300, 4), (3, 200, 8), (200, 3, 8), (513, 257, 16), (0, 5, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_product(shape: tuple[int, int, int]) -> None:
    out, inner, rank = shape
    random = np.random.default_rng(1)
    b, a = random.standard_normal((out, rank)), random.standard_normal((rank, inner))
    values, exponent = singular_values(b, a)
    dense = np.linalg.svd(b @ a, compute_uv=False)[: len(values)]
    assert np.allclose(np.ldexp(values, exponent), dense, rtol=1e-12, atol=1e-13)
    whole = svd_of_product(b, a)
    assert exponent == whole.exponent and np.allclose(values, whole.values, rtol=1e-12, atol=1e-15)


def test_values_of_extreme_factors() -> None:
    b, a = np.full((4, 2), 1e200), np.full((2, 4), 1e-300)
    values, exponent = singular_values(b, a)
    assert values[1] == 0 and exponent % 2 == 0
    assert np.ldexp(values[0], exponent) == pytest.approx(8e-100)
    assert not singular_values(np.zeros((4, 2)), a)[0].any()


@pytest.mark.parametrize("count", [1, 3, 64])
def test_equal_values_count(count: int) -> None:
    values = np.r_[np.full(count, 0.37), np.zeros(5)]
    assert entropy_rank(values) == pytest.approx(count) and stable_rank(values) == pytest.approx(count)


def test_nothing_has_rank_0() -> None:
    assert entropy_rank(np.zeros(3)) == stable_rank(np.zeros(3)) == entropy_rank(np.zeros(0)) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12), st.floats(1e-100, 1e100))
def test_laws(found: list[float], scale: float) -> None:
    values = np.sort(found)[::-1]
    entropy, stable = entropy_rank(values), stable_rank(values)
    assert 1 - 1e-12 <= stable <= len(values) + 1e-9 and 1 - 1e-12 <= entropy <= len(values) + 1e-9
    assert stable <= entropy * (
        1 + 1e-9
    )  # the entropy of order 1 of σ, against what is at most that of order ∞ squared
    assert entropy_rank(values * scale) == pytest.approx(entropy)
    assert stable_rank(values * scale) == pytest.approx(stable)
    assert stable == pytest.approx(1 / (1 - errors(values)[1] ** 2), rel=1e-6)


def test_entropy_by_hand() -> None:
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert entropy_rank(np.array([0.75, 0.25])) == pytest.approx(math.exp(entropy))


@given(values=st.lists(st.floats(1e-3, 1), min_size=2, max_size=30), data=st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_not_known_of_a_spectrum_makes_a_lower_bound(values: list[float], data: st.DataObject) -> None:
    whole = np.array(sorted(values, reverse=True))
    known = data.draw(st.integers(1, len(whole)))
    rest = float(np.square(whole[known:]).sum())
    assert entropy_rank(whole[:known], rest) <= entropy_rank(whole) * (1 + 1e-9)
    assert stable_rank(whole[:known], rest) == pytest.approx(stable_rank(whole))
