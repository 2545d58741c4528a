"""Stored numbers to floats, which is exact, and floats to stored numbers, rounded once: to nearest, ties to even,
subnormals included.

BF16 and F16 are held as their 16 bits. The usual way from float64 to 16 bits leads through float32 and rounds twice:
a value just beside the middle of two neighbours is first pulled onto the middle and then goes to the even one. Here the
float32 on the way is the *odd* neighbour, which keeps the side (S. Boldo, G. Melquiond, "When double rounding is odd",
IMACS 2005). The oracle in the tests is a rounding of `fractions.Fraction`, written apart from this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptertool.errors import InternalError
from adaptertool.numerics.compiled import FUNCTIONS, address

Array = npt.NDArray[Any]

# How each dtype that is computed on is held.
STORED: Mapping[str, np.dtype[Any]] = {
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.uint16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_FLOAT: Mapping[str, Any] = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
# Unsigned integers of their size: the order of bits is that of magnitudes.
WORD: Mapping[str, Any] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F64": np.uint64}
_MOST_INDICES = 2**31 - 1  # that the compiled kernel counts up to
# More than what rounding to float32 may add to an error: half a unit in the last place, also of its subnormal numbers.
_TWICE, _TWICE_LEAST = 2.0**-24 * (1 + 2.0**-10), 2.0**-148


def standard_arithmetic() -> None:
    """Round to nearest and keep subnormal numbers in this thread, whatever another library has set.

    Raises InternalError where that is not so and cannot be changed.
    """
    if "standard_arithmetic" in FUNCTIONS:
        FUNCTIONS["standard_arithmetic"]()
    if (np.array([2.0**-149, 2.0**-149], np.float32) * np.float32(1)).min() == 0:
        raise InternalError("subnormal numbers are lost in this process: a library has set the processor to flush them")


def widen(stored: Array, dtype: str, out: Array) -> float:
    """Write to `out` the numbers that are stored as `dtype`, in float32 or float64; returns the largest magnitude,
    which is infinite or NaN if one of them is. All flat."""
    call = FUNCTIONS.get(f"widen_{dtype}_{out.dtype.str[1:]}")
    if call is not None:
        largest = call(address(stored, STORED[dtype], out.size), address(out, out.dtype, out.size), out.size)
        return float(np.uint32(largest).view(np.float32))
    np.copyto(out, _numbers(stored, dtype), casting="same_kind")
    return _largest(stored, dtype)


def _largest(stored: Array, dtype: str) -> float:
    if not stored.size:
        return 0.0
    if dtype == "F64":
        return float(np.maximum(stored.max(), -stored.min()))
    sizes = stored.view(WORD[dtype]) & WORD[dtype](np.iinfo(WORD[dtype]).max >> 1)
    return float(_numbers(np.atleast_1d(sizes.max()).view(STORED[dtype]), dtype)[0])


def _numbers(stored: Array, dtype: str) -> Array:
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.view(np.float16) if dtype == "F16" else stored


def round_within(values: Array, error: float, relative: float, dtype: str, out: Array, *, quick: bool = False) -> Array:
    """out = the rounding of x − e, and the indices where that of x + e differs, for e = error + relative·|x|, which
    is rounded itself. All flat; out as in STORED. Values beyond the range become infinite, NaN stays NaN.

    quick: the ends may be rounded twice, by way of float32. They lie further apart by what that may do, so a few more
    indices are returned; where none is, `out` is right all the same.
    """
    if values.dtype == out.dtype and not error and not relative:  # nothing to round
        out[:] = values
        return np.empty(0, np.int64)
    name = f"_{values.dtype.str[1:]}_{dtype}"
    known = FUNCTIONS if values.size <= _MOST_INDICES else {}
    call = known.get("twice" + name) if quick else None
    if call is not None:
        error, relative = error + _TWICE_LEAST, relative + _TWICE
    else:
        call = known.get("round" + name)
    if call is not None:
        found = np.empty(out.size, np.int32)
        addresses = address(out, STORED[dtype], values.size), out.size, address(found, np.int32, out.size)
        count = call(address(values, values.dtype, values.size), error, relative, *addresses)
        return found[:count].copy()
    reach = np.minimum(abs(values), np.finfo(values.dtype).max)  # infinity times 0 would be NaN
    reach *= relative
    reach += error
    out[:] = _rounded(values - reach, dtype)
    upper = _rounded(values + reach, dtype)
    return np.flatnonzero(out.view(WORD[dtype]) != upper.view(WORD[dtype]))


def _rounded(values: Array, dtype: str) -> Array:
    with np.errstate(all="ignore"):
        if dtype != "BF16":
            return values.astype(_FLOAT[dtype]).view(STORED[dtype])
        single = values.astype(np.float32)
        bits = single.view(np.uint32)
        if values.dtype == np.float64:
            back = single.astype(np.float64)
            even = (back != values) & (bits & 1 == 0)
            bits += np.where(even, np.where(abs(back) > abs(values), -1, 1), 0).astype(np.uint32)
        narrow = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return np.where(np.isnan(single), 0x7FC0, narrow).astype(np.uint16)


def to_nearest(value: Fraction) -> float:
    """The float64 nearest to `value`, ties to even; infinite beyond the range."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def to_odd(value: Fraction) -> float:
    """The float64 next to `value` towards 0, with its last bit set if that is inexact: rounding it to a narrower
    dtype then is the rounding of `value` itself."""
    nearest = to_nearest(value)
    if math.isinf(nearest) or Fraction(nearest) == value:
        return nearest
    if abs(Fraction(nearest)) > abs(value):
        nearest = math.nextafter(nearest, 0.0)
    if int(np.float64(nearest).view(np.int64)) & 1:
        return nearest
    return math.nextafter(nearest, math.copysign(math.inf, value))


def in_16_bits(values: Array, dtype: str) -> Array:
    """The numbers nearest to float64 ones that F16 or BF16 stores, ties to even, by way of float32; of other dtypes the
    same numbers. Float64."""
    if dtype not in ("F16", "BF16"):
        return values
    numbers: Array = _numbers(_rounded(values.astype(np.float32), dtype), dtype).astype(np.float64)
    return numbers
