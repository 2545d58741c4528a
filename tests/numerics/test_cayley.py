"""Cayley's transform and its series against rationals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from skews import cayley, identity, skews, times

from adaptertool.numerics import cayley as made_blocks
from adaptertool.numerics import compiled
from adaptertool.numerics.cayley import series, transform
from adaptertool.numerics.double_double import DoubleDouble

SIZES = [1e-20, 1e-3, 0.1, 1.0, 1e3, 1e8, 1e20, 1e200]


def off(found: DoubleDouble, block: int, exact: Any) -> float:
    high, low = (np.frompyfunc(Fraction, 1, 1)(part[block]) for part in found.parts[:2])
    return float(abs(high + low - exact).max())


@pytest.mark.long("wide")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wide", [1, 2, 3, 5, 8])
def test_the_transform_is_within_its_error(wide: int, size: float) -> None:
    blocks = skews(3, wide) * size
    found = transform(DoubleDouble.of(blocks))
    for number, block in enumerate(blocks):
        assert off(found, number, cayley(block)) < wide * 2.0**-104


def test_numbers_of_very_different_sizes_and_two_terms() -> None:
    rng = np.random.default_rng(1)
    blocks = np.triu(rng.standard_normal((4, 6, 6)) * 2.0 ** rng.integers(-60, 60, (4, 6, 6)), 1)
    lows = np.triu(np.spacing(blocks) / 4, 1)
    high, low = blocks - blocks.transpose(0, 2, 1), lows - lows.transpose(0, 2, 1)
    found = transform(DoubleDouble(np.stack([high, low, np.zeros_like(high)])))
    exact = np.frompyfunc(Fraction, 1, 1)
    for number in range(2):
        assert off(found, number, cayley(exact(high[number]) + exact(low[number]))) < 6 * 2.0**-104


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_nan_and_leaves_other_blocks(wrong: float) -> None:
    blocks = skews(3, 3)
    blocks[1, 0, 2] = wrong
    found = transform(DoubleDouble.of(blocks))
    assert np.isnan(found.high[1]).all() and np.isfinite(found.parts[:, [0, 2]]).all()


def test_another_block_does_not_matter() -> None:
    blocks = np.concatenate([skews(2, 4), skews(1, 4) * 1e200, np.zeros((1, 4, 4))])
    found = transform(DoubleDouble.of(blocks))
    for number, block in enumerate(blocks):
        assert (transform(DoubleDouble.of(block[None])).parts[:, 0] == found.parts[:, number]).all()
    assert (found.high[3] == np.eye(4)).all() and not found.low[3].any()


@pytest.mark.parametrize("terms", range(-1, 8))
def test_the_series(terms: int) -> None:
    blocks = skews(2, 4)
    for number, block in enumerate(blocks):
        powers = [identity(4)]
        for _ in range(terms):
            powers.append(times(powers[-1], np.frompyfunc(Fraction, 1, 1)(block)))
        exact = powers[0]
        if terms == 2:
            exact = exact + 2 * powers[1]
        elif terms > 2:
            last = max(terms - 1, 3)
            exact = exact + 2 * sum(powers[1:last]) + powers[last]
        size = float(abs(exact).max())
        assert off(series(DoubleDouble.of(blocks), terms), number, exact) <= size * 2.0**-96


@pytest.mark.parametrize("count", [0, 1, 3])
def test_blocks_by_the_kernel_have_the_bits_of_each_by_itself(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(count)
    left, right = rng.standard_normal((3, count, 9, 9)), rng.standard_normal((count, 9, 9))
    left[1:] *= 2.0**-54
    left[2] = abs(left[2])
    made = []
    for level in (*compiled.levels(), None):
        monkeypatch.setattr(made_blocks, "FUNCTIONS", compiled.functions(level))
        made.append(made_blocks._each(left, right))
    assert all(one.tobytes() == made[0].tobytes() for one in made)


@pytest.mark.parametrize("wide", [2, 5, 9])
def test_of_what_float32_holds_all_is_finite(wide: int) -> None:
    """Which is why nobody looks at what is made of it (Making.finite): up to six terms of the series."""
    rng = np.random.default_rng(wide)
    for number in range(2):
        sizes = rng.choice([3.4e38, 1e-45, 1.0, 1e20], (2, wide, wide)) if number else np.full((2, wide, wide), 3.4e38)
        q = sizes * np.sign(rng.standard_normal(sizes.shape))
        skewed = DoubleDouble.of(np.triu(q, 1) - np.triu(q, 1).transpose(0, 2, 1))
        for found in (transform(skewed), *(series(skewed, terms) for terms in range(7))):
            assert np.isfinite(found.parts[:2]).all()
