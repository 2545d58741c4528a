"""Which singular values are the smallest, against what float32 makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptertool.numerics.decomposed import smallest
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
