"""float64 → stored dtype in one correct rounding, against rationals."""

from __future__ import annotations

from fractions import Fraction

import long_tests
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import round_fraction

from adaptertool.codecs import numbers
from adaptertool.numerics import rounding

NARROW = [torch.bfloat16, torch.float16]
ALL = [*NARROW, torch.float32]
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """By the compiled kernel and by its twin in numpy, which must agree to the bit."""
    name = NAMES[dtype]
    out = numbers.rounded(values.numpy(), name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "FUNCTIONS", {})
        assert out.tobytes() == numbers.rounded(values.numpy(), name).tobytes()
    return torch.from_numpy(out.view(np.dtype(f"i{out.itemsize}"))).view(dtype)


def check(values: torch.Tensor, dtype: torch.dtype) -> None:
    for value, got in zip(values.tolist(), rounded(values, dtype).to(torch.float64).tolist(), strict=True):
        expected = round_fraction(Fraction(value), dtype)
        if expected is None:
            assert got == float("inf") * (1 if value > 0 else -1), value
        else:
            assert Fraction(got) == expected, value


def midpoints(dtype: torch.dtype) -> torch.Tensor:
    """The middle between every finite value and the next, as float64; for float32 a sample of them."""
    if dtype == torch.float32:
        bits = torch.randint(0, 0x7F7FFFFF, (4096,), dtype=torch.int32)
    else:
        bits = torch.arange(0, 0x7F80 if dtype == torch.bfloat16 else 0x7C00, dtype=torch.int16)
    low = bits.view(dtype).to(torch.float64)
    high = (bits + 1).view(dtype).to(torch.float64)
    high = torch.where(high.isinf(), 2 * low - (bits - 1).view(dtype).to(torch.float64), high)
    return (low + high) / 2


@pytest.mark.parametrize("dtype", ALL)
def test_every_midpoint_and_its_neighbours(dtype: torch.dtype) -> None:
    """Exact middles go to even; the float64 values just beside them keep their side, where torch does not."""
    exact = midpoints(dtype)[
        :: 1 if dtype == torch.float32 else 7 if long_tests.ALL else 41
    ]  # an odd step: even and odd ones in turn
    infinity = torch.tensor(float("inf"), dtype=torch.float64)
    for values in (exact, torch.nextafter(exact, infinity), torch.nextafter(exact, -infinity)):
        check(values, dtype)
        check(-values, dtype)


def test_torch_rounds_twice() -> None:
    """The reason for all this; when torch learns to do it right, the Rounder can go."""
    above = torch.nextafter(midpoints(torch.bfloat16)[16000:16001], torch.tensor(9.0, dtype=torch.float64))
    assert above.to(torch.bfloat16) != rounded(above, torch.bfloat16)


@pytest.mark.parametrize("dtype", ALL)
@settings(max_examples=long_tests.share(400), deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_any_float(dtype: torch.dtype, value: float) -> None:
    check(torch.tensor([value], dtype=torch.float64), dtype)


@pytest.mark.parametrize("dtype", ALL)
def test_range_ends(dtype: torch.dtype) -> None:
    """Half an ulp above the largest finite value ties to infinity; just below it rounds to the largest."""
    top = midpoints(dtype).max() if dtype != torch.float32 else torch.tensor(2.0**128 - 2.0**103, dtype=torch.float64)
    below = torch.nextafter(top, torch.tensor(0.0, dtype=torch.float64))
    got = rounded(torch.stack([top, below, -top, -below]), dtype)
    largest = torch.finfo(dtype).max
    assert got.tolist() == [float("inf"), largest, -float("inf"), -largest]


@pytest.mark.parametrize("dtype", ALL)
def test_zero_and_underflow_keep_the_sign(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -0.0, 1e-300, -1e-300, 5e-324, -5e-324], dtype=torch.float64)
    got = rounded(values, dtype)
    assert got.tolist() == [0.0] * 6
    assert got.signbit().tolist() == [False, True] * 3


@pytest.mark.parametrize("dtype", ALL)
def test_nan_and_infinity_stay(dtype: torch.dtype) -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=torch.float64)
    got = rounded(values, dtype)
    assert got[0].isnan() and got[1:].tolist() == [float("inf"), -float("inf")]


@pytest.mark.parametrize("dtype", ALL)
def test_stored_values_are_fixed_points(dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**15), 2**15, (20000,)).to(INTEGERS[dtype]) * (1 if dtype != torch.float32 else 65537)
    stored = bits.view(dtype)
    stored = stored[stored.isfinite()]
    assert rounded(stored.to(torch.float64), dtype).view(INTEGERS[dtype]).equal(stored.view(INTEGERS[dtype]))


def test_monotone() -> None:
    values = torch.randn(100_000, dtype=torch.float64).sort().values
    for dtype in ALL:
        assert (rounded(values, dtype).diff() >= 0).all()
