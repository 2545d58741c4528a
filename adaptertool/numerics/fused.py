"""Blocks in one visit (kernel/fused.h): widened, changed by a product of two factors, rounded, and known to be right
but for the few elements that are told. Without the kernel there is nothing here: blocks go the way of all others."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptertool.numerics.compiled import FUNCTIONS, address
from adaptertool.numerics.lowest_bit import powers_of

Array = npt.NDArray[Any]
MOST_ALPHAS, _GROUP, _PAD = 8, 16, 32  # as in kernel/fused.h
_ROOM = 256  # the share of a block that may be left open is 1 in so many; blocks with more go another way
_UP = 1 + 2.0**-20  # more than the roundings of a length
_SHORT = 2.0**-140  # a length whose square may be lost
_MOST_ROUNDED = 512  # rank
ROUNDING = ("BF16", "F16")  # the dtypes whose sums are in float, for which factors may be rounded


class _Job(ctypes.Structure):
    """`block_job` of kernel/fused.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "out", "alpha")),
        *((name, ctypes.c_size_t) for name in ("alphas", "rows", "columns", "rank")),
        *((name, ctypes.c_void_p) for name in ("panels", "right_norm", "right_power")),
        ("right_length", ctypes.c_double),
        ("right_double", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("left", "left_double", "left_norm", "left_power")),
        ("tiny", ctypes.c_double),
        ("off", ctypes.c_double),
        ("magnitude", ctypes.c_void_p),
        ("weight", ctypes.c_double),
        *((name, ctypes.c_size_t) for name in ("first", "every")),
        ("open", ctypes.c_void_p),
        ("room", ctypes.c_size_t),
        *((name, ctypes.c_void_p) for name in ("opened", "changed", "kept", "update")),
    )


class _Blend(ctypes.Structure):
    """`blend_job` of kernel/fused_double.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "tuned", "out", "alpha")),
        *((name, ctypes.c_size_t) for name in ("alphas", "count", "first", "every")),
        ("open", ctypes.c_void_p),
        ("room", ctypes.c_size_t),
        *((name, ctypes.c_void_p) for name in ("opened", "changed", "kept", "update")),
    )


class Results:
    """What both kinds of jobs write, for several α."""

    def __init__(self, stored: Array, alphas: Sequence[float], out: Sequence[Array], sample: tuple[int, int]) -> None:
        count = len(alphas)
        self._room, self._sample = stored.size // _ROOM + 64, sample
        self._opened, self._changed = np.zeros(count, np.uintp), np.zeros(count, np.uintp)
        self._sums, self._places = np.zeros((2, count)), np.empty((count, self._room), np.int32)
        self._alphas = np.array(alphas, np.float64)
        self._targets = np.array([address(one, stored.dtype, stored.size) for one in out], np.uintp)

    @property
    def fields(self) -> dict[str, int]:
        return {
            "out": self._targets.ctypes.data,
            "alpha": self._alphas.ctypes.data,
            "alphas": len(self._alphas),
            "first": self._sample[0],
            "every": self._sample[1],
            "open": self._places.ctypes.data,
            "room": self._room,
            "opened": self._opened.ctypes.data,
            "changed": self._changed.ctypes.data,
            "kept": self._sums[0].ctypes.data,
            "update": self._sums[1].ctypes.data,
        }

    @property
    def made(self) -> list[Made] | None:
        """None where more is left open than there was room for."""
        if self._opened.max() > self._room:
            return None
        counts = zip(self._places, self._opened.tolist(), self._changed.tolist(), *self._sums.tolist(), strict=True)
        return [Made(np.sort(places[:opened]), changed, *sums) for places, opened, changed, *sums in counts]


@dataclass(frozen=True, slots=True)
class Right:
    """The right factor of a product (rank, columns), as the kernel has it: in groups of columns, and what bounds need
    to know of them."""

    rank: int
    columns: int
    panels: Array  # float32 [groups][rank][_GROUP]
    double: Array | None  # float64 (columns, rank), where the panels are rounded
    norm: Array  # float32, of each column, not less than its length
    power: Array  # float64, of each column: of two, of which its numbers are multiples
    length: float  # of all
    largest: float

    @classmethod
    def of(cls, factor: Array, *, few_bits: bool) -> Right | None:
        """A float64 factor; None where it is so large that products may overflow, or is not float32 and so long that
        BLAS takes less time. few_bits: it may be that sums of products are exact"""
        rank, columns = factor.shape
        with np.errstate(over="ignore"):
            single = factor.astype(np.float32)
        largest = float(abs(factor).max(initial=0.0))
        rounded = not np.array_equal(single, factor)
        if not largest < 2.0**60 or (rounded and rank > _MOST_ROUNDED):
            return None
        groups = -(-columns // _PAD) * _PAD // _GROUP
        padded = np.zeros((rank, groups * _GROUP), np.float32)
        padded[:, :columns] = single
        panels = np.ascontiguousarray(padded.reshape(rank, groups, _GROUP).transpose(1, 0, 2))
        squares = np.zeros(groups * _GROUP)
        squares[:columns] = np.einsum("kj,kj->j", factor, factor)
        norm = (np.sqrt(squares) * _UP).astype(np.float32)
        norm[:columns][(norm[:columns] < _SHORT) & factor.any(0)] = _SHORT
        power = np.zeros(groups * _GROUP)
        if few_bits:
            power[:columns] = powers_of(factor, 0)
        whole = np.ascontiguousarray(factor.T) if rounded else None
        return cls(rank, columns, panels, whole, norm, power, float(np.sqrt(squares.sum())) * _UP + _SHORT, largest)


@dataclass(frozen=True, slots=True)
class Left:
    """Rows of the left factor, float64 (rows, rank), times the scale."""

    double: Array
    single: Array
    norm: Array  # float64, of each row, not less than its length
    power: Array  # as of a column of Right
    largest: float

    @classmethod
    def of(cls, factor: Array, *, few_bits: bool) -> Left | None:
        """None where numbers are so large, or so small, that they get lost on the way. few_bits: the product with the
        scale is exact, and it may be that sums of products are"""
        factor = np.ascontiguousarray(factor)
        sizes = abs(factor)
        largest = float(sizes.max(initial=0.0))
        if not largest < 2.0**60 or float(sizes.min(initial=1.0, where=sizes > 0)) < 2.0**-400:
            return None
        norm = np.sqrt((factor * factor).sum(1)) * _UP
        norm[(norm < _SHORT) & factor.any(1)] = _SHORT
        power = powers_of(factor, 1) if few_bits else np.zeros(len(factor))
        return cls(factor, factor.astype(np.float32), norm, power, largest)


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a block at one α: the elements that are left open, as indices in their order, and what a tally
    counts."""

    open: Array
    changed: int
    kept: float
    update: float


def add_product(
    stored: Array,
    dtype: str,
    left: Left,
    right: Right,
    alphas: Sequence[float],
    out: Sequence[Array],
    sample: tuple[int, int],
    length: tuple[Array, float] | None = None,
    off: float = 0.0,
) -> list[Made] | None:
    """out[a] = the rounding of w + α·P, for `stored` w (rows, columns) of `dtype`, flat, all contiguous, and a P from
    which no element of left @ right differs by more than `off`, and in rows of zeros not at all. At most MOST_ALPHAS of
    α; none is 0.

    sample: (first, every): sums are taken over the rows for which first + row is a multiple of `every`
    length: (m, weight): of w + α·weight·(m·V / ‖V‖ − w) instead, for V = w + left @ right, and m of each row, float64
    None where the kernel is not there or cannot: numbers are too large, or not finite, or too many are left open.
    """
    call, rows = FUNCTIONS.get(f"{'dora' if length else 'lora'}_{dtype}"), len(left.double)
    most = max(1.0, *map(abs, alphas))
    if (off or right.double is not None) and (dtype not in ROUNDING or length):
        return None
    if call is None or not most < 2.0**60 or not min(map(abs, alphas)) > 2.0**-60:
        return None
    if not left.norm.max(initial=0.0) * float(right.norm.max(initial=0.0)) * most < 2.0**110:
        return None
    results, held = Results(stored, alphas, out, sample), stored.dtype
    magnitude, weight = length or (np.empty(0), 1.0)
    job = _Job(
        source=address(stored, held, rows * right.columns),
        rows=rows,
        columns=right.columns,
        rank=right.rank,
        panels=right.panels.ctypes.data,
        right_norm=right.norm.ctypes.data,
        right_power=right.power.ctypes.data,
        right_length=right.length,
        right_double=None if right.double is None else right.double.ctypes.data,
        left=address(left.single, np.float32, rows * right.rank),
        left_double=address(left.double, np.float64, rows * right.rank),
        left_norm=left.norm.ctypes.data,
        left_power=left.power.ctypes.data,
        tiny=most * ((1 + left.largest + right.largest) * (right.rank + 2) * 2.0**-147 + off * _UP),
        off=off,
        magnitude=address(magnitude, np.float64, rows) if length else None,
        weight=weight,
        **results.fields,
    )
    return results.made if call(ctypes.byref(job)) else None


def blend(
    stored: Array, tuned: Array, dtype: str, alphas: Sequence[float], out: Sequence[Array], sample: tuple[int, int]
) -> list[Made] | None:
    """out[a] = the rounding of w + α·(t − w), for w and t as stored, both of `dtype`, flat, contiguous. No α is 0 or 1.

    sample: (first, every): sums are taken over the elements for which first + place is a multiple of `every`
    None where the kernel is not there or cannot, as in `add_product`.
    """
    call = FUNCTIONS.get(f"blend_{dtype}")
    if call is None or not all(2.0**-60 < abs(alpha) < 2.0**60 and alpha != 1 for alpha in alphas):
        return None
    results = Results(stored, alphas, out, sample)
    source, other = (address(one, stored.dtype, stored.size) for one in (stored, tuned))
    job = _Blend(source=source, tuned=other, count=stored.size, **results.fields)
    return results.made if call(ctypes.byref(job)) else None
