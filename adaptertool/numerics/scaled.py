"""Numbers times one number, so that rounding what comes out is rounding the exact product."""

from __future__ import annotations

import math

import numpy as np

from adaptertool.numerics.error_free import Array, two_product


def scaled(values: Array, times: float, *, rounded_again: bool) -> tuple[Array, Array]:
    """(products in float64, which of these are not exact), of finite values in float64.

    rounded_again: they will be rounded to fewer bits: what is not exact is then rounded to odd, so that the second
    rounding is that of the exact product. Source: S. Boldo, G. Melquiond, "When double rounding is odd" (IMACS 2005).
    """
    if abs(math.frexp(times)[0]) in (0.0, 0.5):  # 0, or a power of two: exact, but for what becomes too small
        products = values * times
        lost = (products / times != values) if times else np.zeros(values.shape, bool)
        return products, lost
    products, rest = two_product(values, np.full_like(values, times))
    lost = (rest != 0) | ((products == 0) & (values != 0))
    if rounded_again:
        bits = products.view(np.int64)
        # Towards 0 first, where the product was rounded away from it; then the last bit is set
        inward = bits - ((rest != 0) & (np.signbit(rest) != np.signbit(products)))
        products = np.where(rest != 0, inward | 1, bits).view(np.float64)
    return products, lost
