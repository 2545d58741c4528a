"""The decomposition of a Kronecker product is that of the dense product."""

from __future__ import annotations

import numpy as np
import pytest

from adaptertool.numerics.kronecker import singular_values, svd_of_kronecker
from adaptertool.numerics.lowrank import svd_of_product


@pytest.mark.parametrize("most", [1, 4, 11, 12])
def test_against_the_dense_product(most: int) -> None:
    rng = np.random.default_rng(0)
    (b1, a1), (b2, a2) = (
        (rng.standard_normal((high, rank)) * size, rng.standard_normal((rank, wide)))
        for high, rank, wide, size in ((5, 3, 7, 1e-3), (6, 4, 4, 3e5))
    )
    first, second = svd_of_product(b1, a1), svd_of_product(b2, a2)
    dense = np.kron(b1 @ a1, b2 @ a2)
    left, values, right = np.linalg.svd(dense)
    found = svd_of_kronecker(first, second, most)
    assert found.exponent % 2 == 0 and 0.25 <= found.values[0] < 1
    assert found.values * 2.0**found.exponent == pytest.approx(values[:12], rel=1e-12)
    assert singular_values(first, second) * 2.0 ** (first.exponent + second.exponent) == pytest.approx(values[:12])
    for factor in (found.left.T, found.right):
        assert factor.shape[0] == most and factor @ factor.T == pytest.approx(np.eye(most), abs=1e-12)
    product = found.left * found.values[:most] @ found.right * 2.0**found.exponent
    assert product == pytest.approx(left[:, :most] * values[:most] @ right[:most], abs=1e-11 * values[0])
    biggest = abs(found.right).argmax(1)
    assert (found.right[np.arange(most), biggest] > 0).all()


def test_of_nothing() -> None:
    nothing = svd_of_product(np.zeros((3, 2)), np.zeros((2, 4)))
    some = svd_of_product(np.ones((2, 1)), np.ones((1, 2)))
    assert not svd_of_kronecker(nothing, some, 1).values.any()
