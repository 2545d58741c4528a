"""Which singular values are the smallest, against what float32 makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptertool.numerics.decomposed import smallest, unit_columns
from adaptertool.numerics.error_bound import Array

LEAST = 8


def spectrum(size: int, level: float, gap: float, equal: int = 1) -> Array:
    """From 1 down; LEAST are smaller by `gap` than the `equal` before them, which are `level`."""
    lower = level - gap - np.linspace(0, level / 2, LEAST) * (equal == 1)
    return np.concatenate([np.linspace(1, max(level, 0.95), size - LEAST - equal), np.full(equal, level), lower])


def of(values: Array, out: int, wide: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(size, len(values), dtype=torch.float64, generator=random))[0]
        for size in (out, wide)
    )
    return (u * torch.from_numpy(values) @ v.T).float()


def off(matrix: torch.Tensor, count: int) -> float:
    """How far the smallest part is from what float32 finds, in norms of the matrix."""
    found = smallest(matrix.double().numpy(), count, "F32")
    assert found is not None
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    narrow = (u[:, -count:] * s[-count:] @ v[-count:]).double()
    return float((narrow - torch.from_numpy(found.left @ found.right)).norm() / matrix.double().norm())


@pytest.mark.long
@pytest.mark.parametrize("gap", [2.0**-step for step in (8, 14, 17, 18, 19, 21, 25)] + [0.0])
@pytest.mark.parametrize("level", [0.9, 0.1, 0.003])
@pytest.mark.parametrize(("out", "wide"), [(48, 48), (200, 40), (40, 200), (256, 256)])
def test_what_is_told_is_what_float32_finds(out: int, wide: int, level: float, gap: float) -> None:
    for equal in (1, 6):
        matrix = of(spectrum(min(out, wide), level, gap, equal), out, wide, 1)
        found = smallest(matrix.double().numpy(), LEAST, "F32")
        assert found is not None
        assert not found.told or off(matrix, LEAST) <= 2.0**-8
        if gap >= 2.0**-8 or level == 0.003:  # far apart, or of no weight
            assert found.told


def test_float32_finds_another_where_they_are_equal() -> None:
    """What is not told is not there to be found."""
    matrix = of(spectrum(48, 0.9, 0.0, 6), 48, 48, 1)
    found = smallest(matrix.double().numpy(), LEAST, "F32")
    assert found is not None and not found.told
    assert off(matrix, LEAST) > 2.0**-4


@pytest.mark.parametrize("values", [np.zeros(9), np.ones(9) * (np.arange(9) < 2), np.ones(9)], ids=["0", "rank 2", "1"])
def test_of_low_rank(values: Array) -> None:
    """Nothing is told apart where all are equal, unless they are nothing."""
    found = smallest(of(values, 12, 9, 2).double().numpy(), 3, "F32")
    assert found is not None and found.told == (values[-1] == 0)


def test_all_of_them_and_none() -> None:
    matrix = np.random.default_rng(0).standard_normal((6, 5))
    found = smallest(matrix, 5, "F32")
    assert found is not None and found.told
    np.testing.assert_allclose(found.left @ found.right, matrix, atol=1e-14)
    assert smallest(np.full((3, 2), np.nan), 1, "F32") is None


def equations(condition: float, short: float) -> tuple[Array, Array]:
    """A weight (6, 8), and V (8, 8) of that condition, of which the solution has a short column."""
    random = np.random.default_rng(3)
    v = np.linalg.qr(random.standard_normal((8, 8)))[0] * np.geomspace(1, 1 / condition, 8)
    v = v @ np.linalg.qr(random.standard_normal((8, 8)))[0]
    columns = random.standard_normal((6, 8))
    columns[:, 2] *= short
    return columns @ v.T, v


@pytest.mark.parametrize(("condition", "short"), [(1, 1), (10, 1e-9), (1e5, 1e-6), (1e7, 1), (1, 0)])
def test_unit_columns(condition: float, short: float) -> None:
    weight, v = equations(condition, short)
    found = unit_columns(weight, v, "F32")
    expected = weight @ np.linalg.inv(v).T
    lengths = np.linalg.norm(expected, axis=0)
    assert found is not None
    seen = lengths > 1e-12
    np.testing.assert_allclose(found[:, seen], (expected / np.where(seen, lengths, 1))[:, seen], atol=2.0**-8)


@pytest.mark.parametrize(("condition", "short"), [(1e7, 1e-10), (1e8, 1e-10), (1e11, 1)])
def test_columns_that_rounding_makes(condition: float, short: float) -> None:
    """The same equations in another order, which is as right, have other columns."""
    weight, v = equations(condition, short)
    assert unit_columns(weight, v, "F32") is None
    if short < 1:
        order = np.random.default_rng(4).permutation(8)
        one, two = (found[2] / np.linalg.norm(found[2]) for found in (
            np.linalg.solve(v, weight.T), np.linalg.solve(v[order], weight.T[order])))  # fmt: skip
        assert abs(one - two).max() > 2.0**-8
