"""The leading part of matrices, beside dense SVDs: spectra that fall quickly, slowly or not at all, repeated values,
exact ranks, sizes at the ends of the range."""

from __future__ import annotations

import functools
from decimal import Decimal

import numpy as np
import pytest
from blocked import Rows

from adaptertool.numerics.held import Held, Room
from adaptertool.numerics.lowrank import Factors, Svd, kept, split
from adaptertool.numerics.randomized_svd import Leading, leading, leading_of_rank
from adaptertool.spec.choices import RankChoice

RANK = 8
SPECTRA = {
    "quick": 0.5 ** np.arange(200),
    "slow": 1 / (np.arange(200) + 8),
    "very slow": (np.arange(200) + 1) ** -0.3,
    "flat": np.ones(200),
    "repeated": np.where(np.arange(200) < 60, 1, 0),
    "a few": np.where(np.arange(200) < 5, 1, 0),
    "a step": np.where(np.arange(200) < 8, 1, 1e-3),
    "a deep step": np.where(np.arange(200) < 8, 1, 1e-9),
    "one": np.where(np.arange(200) < 1, 1, 0),
    "none": np.zeros(200),
}


def matrix(spectrum: np.ndarray, high: int = 260, wide: int = 200, seed: int = 0) -> np.ndarray:
    left, right = sides(high, wide, seed)
    return left * spectrum @ right.T


@functools.cache
def sides(high: int, wide: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, 200)))[0] for size in (high, wide))
    return left, right


def found_in(rows: np.ndarray, rank: int = RANK, room: int = 1 << 30) -> Leading:
    with Held(Rows(rows), Room(room)) as held:
        return leading_of_rank(held, rank, "seed")


def product(factors: Factors) -> np.ndarray:
    return factors[0] @ factors[1]


@pytest.mark.long("name")
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("power", [0, 60, -60, 400, -400])
@pytest.mark.parametrize("turned", [False, True])
def test_hardly_more_is_left_than_by_the_best(name: str, power: int, turned: bool) -> None:
    rows = np.ldexp(matrix(SPECTRA[name]), power)
    rows = rows.T if turned else rows
    found = found_in(rows)
    values = np.ldexp(SPECTRA[name], power)
    best, norm = np.linalg.norm(values[RANK:]), np.linalg.norm(values)
    rest = np.linalg.norm(rows - product(split(found.svd, RANK, balanced=False)))
    flat = name in ("flat", "very slow")
    assert rest <= best * (1.02 if flat else 1.002) + 1e-14 * norm
    told = np.ldexp(found.svd.values, found.svd.exponent)
    assert np.linalg.norm(told) == pytest.approx(norm, rel=1e-6)  # the last is the rest
    some = slice(1) if flat else slice(RANK)
    np.testing.assert_allclose(told[some], values[some], rtol=0.05 if flat else 2e-3, atol=1e-13 * norm)
    assert found.available == 18 and found.reliable == RANK


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_noise_with_a_part_in_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = matrix(SPECTRA["slow"], seed=seed) + 1e-3 * rng.standard_normal((260, 200))
    values = np.linalg.svd(rows, compute_uv=False)
    rest = np.linalg.norm(rows - product(split(found_in(rows).svd, RANK, balanced=True)))
    assert rest <= 1.001 * np.linalg.norm(values[RANK:])


def test_what_is_kept_changes_no_bit() -> None:
    rows = matrix(SPECTRA["slow"])
    for one, other in zip(found_in(rows).svd, found_in(rows, room=0).svd, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.long
@pytest.mark.parametrize("name", ["quick", "slow", "a step"])
@pytest.mark.parametrize(
    "cut", [RankChoice(energy=Decimal("0.9")), RankChoice(max_error=Decimal("0.2")), RankChoice(max_error=Decimal(0))]
)
def test_as_much_as_a_cut_asks_for(name: str, cut: RankChoice) -> None:
    rows = matrix(SPECTRA[name])
    with Held(Rows(rows), Room()) as held:
        found = leading(held, cut, "seed")
    rank = kept(found.svd.values, cut)
    assert rank <= found.available
    if cut.max_error != 0:
        assert abs(rank - kept(SPECTRA[name], cut)) <= 1


def test_few_are_decomposed_whole() -> None:
    rows = matrix(SPECTRA["slow"])[:30]
    found = found_in(rows)
    assert found.reliable == 30
    np.testing.assert_allclose(_values(found.svd)[:30], np.linalg.svd(rows, compute_uv=False), rtol=1e-12, atol=1e-15)


def _values(svd: Svd) -> np.ndarray:
    return np.ldexp(svd.values, svd.exponent)
