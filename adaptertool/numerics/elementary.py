"""Exponential, logarithm and trigonometric functions of arrays, by products, sums, quotients and roots alone: the same
bits on every machine, which those of a mathematical library are not. Not correctly rounded: within 4 units in the last
place, and sin and cos within 2⁻⁵¹.

exp: x = k·ln 2 + r, |r| ≤ ½ ln 2, and the series of exp r to r¹³/13!, whose rest is under 2⁻⁵⁷.
log: x = 2^k·m, √½ ≤ m < √2, and log m = 2·artanh s with s = (m − 1)/(m + 1), |s| < 0.172, as the series to s²¹/21.
sin, cos: x = k·π/2 + r, |r| ≤ π/4, and the series to r¹⁹/19! and r²⁰/20!.
acos: 2·atan(√(1 − x)/√(1 + x)); atan z = 4·atan of z halved twice by z/(1 + √(1 + z²)), and the series to z³⁵/35.
"""

from __future__ import annotations

import math

import numpy as np

from adaptertool.numerics.rounding import Array

_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # its last 21 bits are 0, so that k·ln 2 is exact for |k| < 2²¹
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_LEAST = -745.0  # exp is 0 below it, but for the last subnormal


def exp(x: Array) -> Array:
    """eˣ of float64 numbers ≤ 700; 0 where it is less than the smallest number."""
    x = np.maximum(x, _LEAST)
    k = np.rint(x * (1 / math.log(2)))
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    series = np.full_like(r, 1 / math.factorial(13))
    for n in range(12, -1, -1):
        series = series * r + 1 / math.factorial(n)
    result: Array = np.ldexp(series, k.astype(np.int32))
    return result


def log(x: Array) -> Array:
    """ln x of positive, finite float64 numbers."""
    m, k = np.frexp(x)
    small = m < math.sqrt(0.5)
    m, k = np.where(small, 2 * m, m), np.where(small, k - 1, k).astype(np.float64)
    s = (m - 1) / (m + 1)
    square = s * s
    series = np.full_like(s, 1 / 21)
    for n in range(19, 0, -2):
        series = series * square + 1 / n
    result: Array = k * _LN2_HIGH + (k * _LN2_LOW + 2 * s * series)
    return result


_HALF_PI_HIGH = float.fromhex("0x1.921fb54400000p+0")  # its last 20 bits are 0
_HALF_PI_MIDDLE = float.fromhex("0x1.0b4611a600000p-34")
_HALF_PI_LOW = float.fromhex("0x1.3198a2e037073p-69")


def sin(x: Array) -> Array:
    """sin x of float64 numbers up to 10⁵ in magnitude."""
    return _quarter(x, 0)


def cos(x: Array) -> Array:
    """cos x of float64 numbers up to 10⁵ in magnitude."""
    return _quarter(x, 1)


def _quarter(x: Array, shift: int) -> Array:
    """sin(x + shift·π/2)."""
    k = np.rint(x * (2 / math.pi))
    r = ((x - k * _HALF_PI_HIGH) - k * _HALF_PI_MIDDLE) - k * _HALF_PI_LOW
    square, quarter = r * r, (k.astype(np.int64) + shift) % 4
    sine, cosine = np.full_like(r, 1 / math.factorial(19)), np.full_like(r, 1 / math.factorial(20))
    for n in range(17, 0, -2):
        sine = 1 / math.factorial(n) - square * sine
        cosine = 1 / math.factorial(n + 1) - square * cosine
    sine, cosine = r * sine, 1 - square * cosine
    value = np.where(quarter % 2, cosine, sine)
    result: Array = np.where(quarter >= 2, -value, value)
    return result


def acos(x: Array) -> Array:
    """The angle in 0..π whose cosine is x, from -1 to 1."""
    with np.errstate(divide="ignore"):
        z = np.sqrt(1 - x) / np.sqrt(1 + x)  # tan of half the angle; infinite at -1
    steep = z > 1
    z = np.where(steep, np.sqrt(1 + x) / np.where(steep, np.sqrt(1 - x), 1), z)
    for _ in range(2):
        z = z / (1 + np.sqrt(1 + z * z))
    square = z * z
    series = np.full_like(z, 1 / 35)
    for n in range(33, 0, -2):
        series = 1 / n - square * series
    half = 4 * z * series
    result: Array = np.where(steep, math.pi - 2 * half, 2 * half)
    return result
