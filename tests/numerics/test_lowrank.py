"""Factored singular values beside the dense ones, and where factors are of odd sizes, ranks and magnitudes."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptertool.numerics.lowrank import Svd, errors, kept, qr, split, storing_error, svd_of_product
from adaptertool.spec.choices import RankChoice

SHAPES = [  # out, r, in
    (9, 4, 7), (100, 2, 5), (35, 2, 50), (64, 3, 49), (3, 5, 8), (8, 6, 2), (1, 1, 1), (5, 5, 5), (2, 9, 2),
]  # fmt: skip


def factors(out: int, rank: int, inner: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((out, rank)), generator.standard_normal((rank, inner))


def product(svd: Svd, rank: int | None = None) -> np.ndarray:
    rank = len(svd.values) if rank is None else rank
    return np.ldexp(svd.left[:, :rank] * svd.values[:rank] @ svd.right[:rank], svd.exponent)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_spectrum_is_that_of_the_product(shape: tuple[int, int, int]) -> None:
    b, a = factors(*shape)
    svd = svd_of_product(b, a)
    dense = np.linalg.svd(b @ a, compute_uv=False)
    count = min(shape)
    assert svd.values.shape == (count,)
    np.testing.assert_allclose(np.ldexp(svd.values, svd.exponent), dense[:count], rtol=1e-13)
    np.testing.assert_allclose(product(svd), b @ a, rtol=0, atol=1e-13 * dense[0])
    np.testing.assert_allclose(svd.left.T @ svd.left, np.eye(count), atol=1e-14)
    np.testing.assert_allclose(svd.right @ svd.right.T, np.eye(count), atol=1e-14)
    assert 0.25 <= svd.values[0] <= 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("balanced", [False, True])
def test_what_is_cut_off_is_the_tail_of_the_dense_spectrum(shape: tuple[int, int, int], balanced: bool) -> None:
    b, a = factors(*shape)
    svd, dense = svd_of_product(b, a), np.linalg.svd(b @ a, compute_uv=False)
    for rank in range(1, min(shape) + 1):
        new_b, new_a = split(svd, rank, balanced=balanced)
        tail = np.sqrt(np.square(dense[rank : min(shape)]).sum())
        np.testing.assert_allclose(np.linalg.norm(b @ a - new_b @ new_a), tail, atol=1e-13 * dense[0])
        np.testing.assert_allclose(errors(svd.values)[rank], tail / np.linalg.norm(b @ a), atol=1e-14)
        if balanced:
            np.testing.assert_allclose(np.linalg.norm(new_b, axis=0), np.linalg.norm(new_a, axis=1), rtol=1e-12)
        else:
            np.testing.assert_allclose(new_a @ new_a.T, np.eye(rank), atol=1e-14)


def test_signs_do_not_depend_on_those_of_the_factors() -> None:
    b, a = factors(9, 4, 7)
    one, other = svd_of_product(b, a), svd_of_product(-b, -a)
    np.testing.assert_allclose(one.left, other.left, atol=1e-14)
    assert (np.take_along_axis(one.right, np.abs(one.right).argmax(axis=1)[:, None], axis=1) > 0).all()


def test_dependent_columns_and_zeros_leave_no_singular_values_behind() -> None:
    b, a = factors(30, 3, 20)
    svd = svd_of_product(np.concatenate([b, -b, 2 * b], axis=1), np.concatenate([a, 3 * a, a]))
    assert np.count_nonzero(svd.values) == 0  # B − 3·B + 2·B: nothing at all
    svd = svd_of_product(np.concatenate([b, b], axis=1), np.concatenate([a, a]))
    assert np.count_nonzero(svd.values) == 3
    assert kept(svd.values, RankChoice(energy=Decimal(1))) == 3
    for zero in (svd_of_product(b, 0 * a), svd_of_product(0 * b, a), svd_of_product(0 * b, 0 * a)):
        assert not zero.values.any()
        assert (
            kept(zero.values, RankChoice(energy=Decimal("0.5")))
            == kept(zero.values, RankChoice(max_error=Decimal(0)))
            == 1
        )
        assert not split(zero, 1, balanced=True)[0].any()


@pytest.mark.parametrize(("up", "down"), [(1000, 1000), (-1000, -1000), (900, -900), (-1060, 1000), (0, -1074)])
def test_magnitudes_at_the_ends_of_the_range(up: int, down: int) -> None:
    b, a = (np.round(factor * 1024) for factor in factors(9, 4, 7))  # few bits: also exact where subnormal
    plain, svd = svd_of_product(b, a), svd_of_product(np.ldexp(b, up), np.ldexp(a, down))
    assert svd.exponent == plain.exponent + up + down
    np.testing.assert_array_equal(svd.values, plain.values)
    np.testing.assert_array_equal(svd.left, plain.left)


def test_components_of_very_different_sizes_are_all_found() -> None:
    """Small in one factor and large in the other: their product counts."""
    b, a = factors(9, 3, 7)
    sizes = np.array([300, 0, -300])
    plain, graded = svd_of_product(b, a), svd_of_product(np.ldexp(b, sizes), np.ldexp(a, -sizes[:, None]))
    np.testing.assert_allclose(graded.values, plain.values, rtol=1e-13)


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    share=st.decimals("0.01", 1, places=4, allow_nan=False),
)
@settings(max_examples=200, deadline=None)
def test_the_rank_is_the_smallest_that_is_enough(values: list[float], share: Decimal) -> None:
    spectrum = np.sort(values)[::-1]
    total = np.square(spectrum).sum()
    count = kept(spectrum, RankChoice(energy=share))
    close = kept(spectrum, RankChoice(max_error=1 - share))
    tail = [float(np.square(spectrum[rank:]).sum()) for rank in range(len(values) + 1)]
    slack = 1e-12 * total
    assert tail[count] <= float(1 - share) * total + slack
    assert count == 1 or tail[count - 1] >= float(1 - share) * total - slack
    assert tail[close] <= float(1 - share) ** 2 * total + slack
    assert close == 1 or tail[close - 1] >= float(1 - share) ** 2 * total - slack


def test_a_rank_is_kept_within_what_there_is() -> None:
    values = np.array([1.0, 0.5])
    assert [kept(values, RankChoice(rank=rank)) for rank in (1, 2, 3)] == [1, 2, 2]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("power", [0, 200, -200])
def test_what_storing_adds_is_bounded(balanced: bool, power: int) -> None:
    b, a = factors(40, 6, 30)
    svd = svd_of_product(np.ldexp(b, power), a)
    exact_b, exact_a = split(svd, 4, balanced=balanced)
    for unit in (2.0**-3, 2.0**-9, 2.0**-24):
        noise = np.random.default_rng(1)
        new_b = exact_b * (1 + unit * noise.uniform(-1, 1, exact_b.shape))
        new_a = exact_a * (1 + unit * noise.uniform(-1, 1, exact_a.shape))
        bound = storing_error(svd, (new_b, new_a), balanced=balanced)
        true = np.linalg.norm(np.ldexp(new_b @ new_a - exact_b @ exact_a, -power)) / np.linalg.norm(b @ a)
        assert true <= bound <= 3 * true


@pytest.mark.parametrize("balanced", [False, True])
def test_what_is_too_small_for_float64_counts_as_lost(balanced: bool) -> None:
    b, a = factors(40, 6, 30)
    svd = svd_of_product(np.ldexp(b, -1060), np.ldexp(a, -1060))
    lost = storing_error(svd, split(svd, 6, balanced=balanced), balanced=balanced)
    assert lost < 1e-3 if balanced else lost == pytest.approx(1)


def test_what_cancels_between_equal_rows_hides_nothing() -> None:
    b, a = factors(40, 2, 30)
    large = np.ldexp(np.random.default_rng(2).standard_normal((40, 1)), 60)
    row = np.random.default_rng(3).standard_normal((1, 30))
    svd = svd_of_product(np.concatenate([large, b, -large], axis=1), np.concatenate([row, a, row]))
    found = np.ldexp(svd.left * svd.values @ svd.right, svd.exponent)
    assert np.linalg.norm(found - b @ a) <= 1e-14 * np.linalg.norm(b @ a)


def test_what_rounding_hides_is_said() -> None:
    b, a = factors(40, 2, 30)
    large = np.ldexp(np.random.default_rng(2).standard_normal((40, 1)), 60)
    row = np.random.default_rng(3).standard_normal((1, 30))
    svd = svd_of_product(np.concatenate([large, b, large], axis=1), np.concatenate([row, a, -row]))
    assert not svd.values.any()  # B·A is not 0, but too small beside what is cancelled in it
    assert storing_error(svd, split(svd, 1, balanced=False), balanced=False) == 1
    zero = svd_of_product(np.concatenate([b, -b], axis=1), np.concatenate([a, a]))
    assert storing_error(zero, split(zero, 1, balanced=False), balanced=False) == 0


@pytest.mark.long("shape")
@pytest.mark.parametrize("lost", [0, 2, 5, 7, 12, 20])
@pytest.mark.parametrize("shape", [(300, 30), (1000, 64), (64, 64), (40, 10), (5, 8), (7, 1), (9, 0), (0, 0)])
def test_orthogonal_factors_are_as_exact_as_those_of_reflections(shape: tuple[int, int], lost: float) -> None:
    """Whatever the condition: 10^lost between the largest and the smallest direction."""
    rng, (high, wide) = np.random.default_rng(0), shape
    least = min(shape)
    left, right = (np.linalg.qr(rng.standard_normal((size, least)))[0] for size in shape)
    rows = left * np.logspace(0, -lost, least) @ right.T
    q, r = qr(rows)
    assert q.shape == (high, least) and r.shape == (least, wide)
    np.testing.assert_allclose(q.T @ q, np.eye(least), atol=4e-15)
    np.testing.assert_allclose(q @ r, rows, atol=4e-15)


@pytest.mark.parametrize("power", [-1000, -500, 500, 1000])
def test_orthogonal_factors_at_the_ends_of_the_range(power: int) -> None:
    rows = np.random.default_rng(0).standard_normal((60, 4))
    with np.errstate(over="ignore", invalid="ignore"):
        q, r = qr(np.ldexp(rows, power))
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=4e-15)
    np.testing.assert_allclose(q @ np.ldexp(r, -power), rows, atol=4e-15)
    for zeros in (rows * 0, rows * [1, 0, 1, 0], rows[:, [0, 1, 0, 1]]):
        q, r = qr(zeros)
        np.testing.assert_allclose(q.T @ q, np.eye(4), atol=4e-15)
        np.testing.assert_allclose(q @ r, zeros, atol=4e-15)
