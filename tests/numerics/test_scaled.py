"""Products that are rounded once, against rationals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import round_fraction

from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics.scaled import scaled

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TIMES = st.one_of(
    st.floats(min_value=2.0**-60, max_value=2.0**60), st.sampled_from([0.0, 1.0, -2.0, 0.1, 2.0**-140, 3.0])
)
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


@given(st.lists(FLOATS, min_size=1, max_size=8), TIMES, st.sampled_from(sorted(DTYPES)))
def test_rounding_them_is_rounding_the_exact_products(values: list[float], times: float, dtype: str) -> None:
    products, lost = scaled(np.array(values), times, rounded_again=dtype != "F64")
    stored = doubles(rounded(products, dtype), dtype)
    for value, found, product, inexact in zip(values, stored, products, lost, strict=True):
        exact = Fraction(value) * Fraction(times)
        wanted = round_fraction(exact, DTYPES[dtype])
        assert np.isinf(found) if wanted is None else Fraction(float(found)) == wanted
        if wanted is not None:
            assert (wanted != exact) == bool(inexact or found != product)
