"""Bases and their signs against LAPACK's, and where float32 leaves a sign open."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptertool.numerics.orthonormal import basis, signs


@pytest.mark.parametrize(("height", "rank"), [(8, 3), (5, 5), (1, 1), (64, 16), (300, 64)])
@pytest.mark.parametrize("first", [None, 0.0, -0.0, -3.0])
def test_as_lapack_has_it(height: int, rank: int, first: float | None) -> None:
    """first: what stands at the top of the first column; -3: and zeros below it"""
    columns = np.random.default_rng(height).standard_normal((height, rank)).astype(np.float32)
    if first is not None and height > 1:
        columns[0, 0] = first
        columns[1:, 0] *= first == 0
    exact = columns.astype(np.float64)
    found, made = signs(exact), basis(exact)
    q, t = torch.linalg.qr(torch.from_numpy(columns))
    assert (found == np.sign(np.diagonal(t.numpy()))).all()
    assert abs(made.high * found - torch.linalg.qr(torch.from_numpy(exact))[0].numpy()).max() < 1e-12
    assert abs(made.high * found - q.numpy()).max() < 1e-4 and made.error.max() < 2.0**-85


def test_what_float32_leaves_open() -> None:
    """The second column is the first but for its end: below the first number nothing is left, or next to nothing."""
    columns = np.array([[1.0, 1.0, 2.0], [0.0, 2.0**-22, 5.0], [0.0, 1.0, 1.0], [0.0, 0.0, 3.0]])
    assert signs(columns).tolist()[:2] == [1.0, 0.0]
    columns[1] = [0.0, 3.0, 5.0]
    columns[2, 1] = 2.0**-22
    assert signs(columns).tolist()[:2] == [1.0, 0.0]
    assert signs(np.ones((4, 2)))[1] == 0
