"""The singular value decomposition of a Kronecker product: the products of the values of both, and of their vectors, so
that it takes what those of the two take (C. Van Loan, "The ubiquitous Kronecker product", 2000)."""

from __future__ import annotations

import numpy as np

from adaptertool.numerics.lowrank import Svd
from adaptertool.numerics.rounding import Array


def singular_values(first: Svd, second: Svd) -> Array:
    """The singular values of first ⊗ second, descending, float64 (n,), in units of 2^(the sum of the exponents)."""
    values: Array = np.sort(np.multiply.outer(first.values, second.values).reshape(-1))[::-1]
    return values


def svd_of_kronecker(first: Svd, second: Svd, most: int) -> Svd:
    """The decomposition of first ⊗ second, with the vectors of the `most` largest values, and all values.

    >>> one = Svd(np.eye(2), np.array([0.5, 0.25]), np.eye(2), 0)
    >>> svd_of_kronecker(one, one, 2).values.tolist()
    [0.25, 0.125, 0.125, 0.0625]
    """
    products = np.multiply.outer(first.values, second.values).reshape(-1)
    order = np.argsort(-products, kind="stable")
    one, two = np.divmod(order[:most], max(1, len(second.values)))
    left = first.left[:, None, one] * second.left[None, :, two]
    right = first.right[one, :, None] * second.right[two, None, :]
    values, exponent = products[order], first.exponent + second.exponent
    ends = [(float(svd.values.max(initial=0.0)), svd.noise) for svd in (first, second)]
    noise = float(np.prod([large + off for large, off in ends]) - np.prod([large for large, _ in ends]))
    if 0 < values.max(initial=0.0) < 0.25:  # the first of a decomposition is not less
        values, noise, exponent = values * 4, noise * 4, exponent - 2
    return Svd(left.reshape(-1, len(one)), values, right.reshape(len(one), -1), exponent, noise)
