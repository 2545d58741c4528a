"""Places that a seed draws, against torch."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from adaptertool.errors import UnsupportedError
from adaptertool.kinds import drawn as module
from adaptertool.kinds.drawn import SEED, check_seed, drawn, normals


@pytest.mark.parametrize("seed", [0, 3, 777, 2**31, 2**32 - 1])
@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 2), (7, 3), (100, 100), (1000, 37), (4096 * 300, 2000)])
def test_as_torch_draws(size: int, count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]
    assert drawn(size, count, seed).tolist() == wanted.tolist()
    monkeypatch.setattr(module, "_FEW", 0)  # as of a weight of 214,748,364 elements
    drawn.cache_clear()
    assert drawn(size, count, seed).tolist() == wanted.tolist()
    drawn.cache_clear()


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
@pytest.mark.parametrize("count", [1, 2, 5, 15, 16, 17, 31, 32, 33, 100, 256])
def test_numbers_as_torch_draws_them(count: int, seed: int) -> None:
    """But for the last bits: its logarithms and cosines are those of float32, by other means on each machine."""
    wanted = torch.randn(count, generator=torch.Generator().manual_seed(seed)).double().numpy()
    assert abs(normals(seed, count) - wanted).max() < 1e-5


def test_large_weights_need_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEW", 5)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnsupportedError, match="pip install torch"):
        drawn(5, 2, 99)


@pytest.mark.parametrize("seed", [None, -1, 2**32, 1.0, True, "777"])
def test_seeds_that_tell_nothing(seed: Any) -> None:
    why = check_seed({SEED: seed})
    assert why is not None and SEED in why
