"""What a layer computes at inference: in the storage dtype, each product summed in float32 and then rounded, as PyTorch
does it on CPU and GPU alike (but for the order of the sums). Factors are in the storage dtype too.

Numbers are arrays of float32 (float64 where float64 is stored) that hold values of the storage dtype. Beside its
result each function gives the variance, the sum of squared errors that its roundings explain (fidelity.model).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import rounded
from adaptertool.fidelity.model import rounding, summing
from adaptertool.numerics.rounding import Array

Result = tuple[Array, float]


def working(dtype: str) -> Any:
    """What numbers of a dtype are computed in."""
    return BY_DTYPE[dtype].wide


def held(values: Array, dtype: str) -> Array:
    """The values rounded to the dtype. A new array."""
    if values.dtype == np.float32 == working(dtype) and dtype == "F32":
        return values.copy()
    stored = rounded(values, dtype)
    out = np.empty(values.shape, working(dtype))
    BY_DTYPE[dtype].decode(stored.reshape(-1), out.reshape(-1))
    return out


def energy(values: Array) -> float:
    """The sum of squares, in float64."""
    flat = values.reshape(-1).astype(np.float64, copy=False)
    return float(flat @ flat)


def powers(values: Array, axis: int) -> Array:
    """Sums of squares along an axis, in float64."""
    sums: Array = np.square(values, dtype=np.float64).sum(axis)
    return sums


class Inner(NamedTuple):
    """x·Aᵀ, rounded, and what its errors come from."""

    numbers: Array  # (n, r)
    variance: Array  # of each of its columns, (r,): from roundings of both factors, and in the products


def inner_of(x: Array | None, a: Array, dtype: str) -> Inner:
    """x·Aᵀ for x (n, in) and A (r, in). x None: each input is looked up, as in an embedding: Aᵀ, and A is (r, n)."""
    a = held(a, dtype)
    if x is None:
        inner, through = np.ascontiguousarray(a.T), powers(a, 1)
    else:
        inner, through = held(x @ a.T, dtype), np.square(a, dtype=np.float64) @ powers(x, 0)
    passed = powers(inner, 0)
    once, summed = rounding(dtype, 1.0), summing(dtype, len(a), 1.0) * passed
    variance = once * (2 * passed + through) + summed
    if x is not None:
        variance = variance + through * summing(dtype, a.shape[1], 1.0)
    return Inner(inner, variance)


def low_rank(inner: Inner, b: Array, dtype: str) -> tuple[Array, Array]:
    """(x·Aᵀ)·Bᵀ, rounded: (n, out) from B (out, r). The variance for each output."""
    b = held(b, dtype)
    result = held(inner.numbers @ b.T, dtype)
    variance: Array = np.square(b, dtype=np.float64) @ inner.variance
    variance += rounding(dtype, 1.0) * powers(result, 0) + rounding(dtype, 0.0, len(result))
    return result, variance


def with_lora(base: Array, change: tuple[Array, Array], scale: float, dtype: str) -> Result:
    """y = base + s·change, for `base` as computed and `change` of `low_rank`. Source: lora.Linear of PEFT 0.21.2."""
    low, variance = change
    scaled = held(low * low.dtype.type(scale), dtype)
    result = held(base + scaled, dtype)
    counted = rounding(dtype, energy(scaled) + energy(result), 2 * result.size)
    return result, float(variance.sum()) * scale**2 + counted


def with_dora(
    base: Array,
    change: tuple[Array, Array],
    scale: float,
    dtype: str,
    magnitude: Array,
    norm: Array,
    weight: float,
    *,
    looked_up: bool,
) -> Result:
    """y = base + w·((f − 1)·base + f·change·s), f = m/‖V‖; m and ‖V‖ (out,). An embedding computes w = 1 as
    f·base + f·change·s. Source: DoraLinearLayer and DoraEmbeddingLayer of PEFT 0.21.2.
    """
    low, variance = change
    ratio = held(held(magnitude, dtype) / held(norm, dtype), dtype)
    scaled = held(held(ratio * low, dtype) * low.dtype.type(scale), dtype)
    if looked_up and weight == 1:
        extra = turned = held(ratio * base, dtype)
        result = held(turned + scaled, dtype)
    else:
        turned = held(held(ratio - 1, dtype) * base, dtype)
        extra = held(turned + scaled, dtype)
        extra = extra if weight == 1 else held(extra * extra.dtype.type(weight), dtype)
        result = held(base + extra, dtype)
    squares = np.square(ratio, dtype=np.float64)
    # m, the norm and their quotient are rounded, for all of a column alike; then what is computed with it
    by_ratio = 3 * weight**2 * float(squares @ (powers(base, 0) + scale**2 * powers(low, 0)))
    counted = by_ratio + 2 * (energy(turned) + energy(scaled)) + 2 * energy(extra) + energy(result)
    return result, float(squares @ variance) * (scale * weight) ** 2 + rounding(dtype, counted, 6 * result.size)
