"""Blocks to which float64 numbers are added, or with which they are multiplied, in one visit (kernel/fused_change.h):
widened, changed, rounded, and known to be right but for the few elements that are told. Without the kernel there is
nothing here: blocks go the way of all others."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.numerics.compiled import FUNCTIONS, address
from adaptertool.numerics.fused import Array, Made, Results

_LEAST, _MOST = 2.0**-200, 2.0**200  # of what changes are multiplied with


class Times(NamedTuple):
    """A number that changes are multiplied with, and by how much of itself it may be off."""

    number: float
    off: float = 0.0


class Change(NamedTuple):
    """What is added to the numbers of a block, flat and contiguous float64 arrays: high + low; or, of gains, what they
    are multiplied with."""

    high: Array
    low: Array | None = None  # no larger than the roundings of `high`
    gain: bool = False
    error: float = 0.0  # by how much an element of what is added may be off


class _Job(ctypes.Structure):
    """`change_job` of kernel/fused_double.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "out", "alpha", "off")),
        *((name, ctypes.c_size_t) for name in ("alphas", "count")),
        *((name, ctypes.c_void_p) for name in ("change", "rest")),
        ("gain", ctypes.c_int64),
        ("error", ctypes.c_double),
        *((name, ctypes.c_size_t) for name in ("first", "every")),
        ("open", ctypes.c_void_p),
        ("room", ctypes.c_size_t),
        *((name, ctypes.c_void_p) for name in ("opened", "changed", "kept", "update")),
    )


def change(
    stored: Array, dtype: str, given: Change, times: Sequence[Times], out: Sequence[Array], sample: tuple[int, int]
) -> list[Made] | None:
    """out[a] = the rounding of w + t·(high + low), of gains w + t·(w·high − w), for `stored` w of `dtype`, flat,
    contiguous, and each t of `times`, none 0.

    sample: (first, every): sums are taken over the elements for which first + place is a multiple of `every`
    None where the kernel is not there or cannot: numbers are too large, or not finite, or too many are left open.
    """
    call, size = FUNCTIONS.get(f"change_{dtype}"), stored.size
    if call is None or not given.error < _MOST or not all(_LEAST < abs(t) < _MOST for t, _ in times):
        return None
    results = Results(stored, [t for t, _ in times], out, sample)
    off = np.array([one.off for one in times])
    job = _Job(
        source=address(stored, stored.dtype, size),
        off=off.ctypes.data,
        count=size,
        change=address(given.high, np.float64, size),
        rest=None if given.low is None else address(given.low, np.float64, size),
        gain=given.gain,
        error=given.error,
        **results.fields,
    )
    return results.made if call(ctypes.byref(job)) else None
