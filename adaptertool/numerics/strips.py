"""Formulas as the kernel computes them, strip by strip (kernel/strips.h): which steps, and where each finds its
numbers. Those who write formulas have lazy.py."""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from adaptertool.numerics.compiled import FUNCTIONS

_STRIP, _NUMBER = 256, -1  # as in kernel/strips.h, whose steps these are, in their order
STEPS = (
    *("READ_BF16", "READ_F16", "READ_F32", "READ_F64", "READ_TRUTH", "FILL"),
    *("ADD", "SUBTRACT", "MULTIPLY", "DIVIDE", "LESS", "LESS_EQUAL", "EQUAL", "AND", "OR", "SMALLER", "LARGER"),
    *("ADD_TIMES", "SAME", "MAGNITUDE", "NOT", "CHOICE", "BETWEEN"),
    *("WRITE_BF16", "WRITE_F16", "WRITE_F32", "WRITE_F64", "SUM", "COUNT", "COLLECT"),
)
_CODE = {name: code for code, name in enumerate(STEPS)}
_WAITING = 64  # sums of halves that wait for others, at most
_BIRTHS = itertools.count()


class Formula:
    """A step that makes the numbers of a strip, or takes them up, and those that make what it is given."""

    __slots__ = ("born", "data", "inputs", "keeps", "name", "size")

    def __init__(
        self, name: str, inputs: Sequence[Formula | float], size: int, data: int = 0, keeps: object = None
    ) -> None:
        """name: one of STEPS; size: elements; data: the address of what the step has beside its inputs; keeps: what
        lies there"""
        self.name, self.inputs, self.size, self.data, self.keeps = name, inputs, size, data, keeps
        self.born = next(_BIRTHS)


class _Step(ctypes.Structure):
    """`strip_step` of kernel/strips.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("code", "to", "a", "b", "c")),
        ("number", ctypes.c_double),
        ("data", ctypes.c_void_p),
    )


class Between(ctypes.Structure):
    """`strip_between` of kernel/strips.h."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("bound", "skip")),
        *((name, ctypes.c_int64) for name in ("equal", "skip_equal")),
    )


class Written(ctypes.Structure):
    """`strip_written` of kernel/strips.h."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("sample", ctypes.c_void_p),
        ("every", ctypes.c_size_t),
        ("largest", ctypes.c_uint64),
    )


class Digits(ctypes.Structure):
    """`strip_digits` of kernel/strips.h."""

    _fields_ = (
        ("prefix", ctypes.c_uint64),
        ("width", ctypes.c_int64),
        ("found", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("rest", ctypes.c_uint64),
    )


class _Job(ctypes.Structure):
    """`strip_job` of kernel/strips.h."""

    _fields_ = (
        ("steps", ctypes.c_void_p),
        *((name, ctypes.c_size_t) for name in ("count", "length")),
        *((name, ctypes.c_void_p) for name in ("room", "place", "sums")),
        ("summed", ctypes.c_size_t),
    )


def run(last: Sequence[Formula]) -> list[float]:
    """Compute these steps, and what they need; returns the sums that are among them."""
    steps, strips, kept = _compiled(last)
    summed = sum(one.name == "SUM" for one in last)
    room, places = np.empty(strips * _STRIP), np.zeros(strips, np.uintp)
    found = np.zeros(max(1, summed) * _WAITING)
    where = (array.ctypes.data for array in (room, places, found))
    job = _Job(ctypes.addressof(steps), len(steps), last[0].size, *where, summed)
    FUNCTIONS["strips"](ctypes.addressof(job))
    del kept  # not before, since the steps have its address
    return [float(one) for one in found[:summed]]


def _compiled(last: Sequence[Formula]) -> tuple[ctypes.Array[_Step], int, list[Between]]:
    """The steps, each after those that it needs, and how many strips they fill: one has that of another from the last
    step on that needs the other, but for this step itself; and what must be kept for them."""
    order = _in_order(last)
    left = Counter(id(given) for one in order for given in one.inputs)
    strip, free, strips, kept = dict[int, int](), list[int](), 0, list[Between]()
    steps = (_Step * len(order))()
    for step, one in zip(steps, order, strict=True):
        if not free:
            free.append(strips)
            strips += 1
        strip[id(one)] = to = free.pop()
        places, data, ended = [_NUMBER] * 3, one.data, set[int]()
        for number, given in enumerate(one.inputs):
            if isinstance(given, Formula):
                left[id(given)] -= 1
                places[number] = strip[id(given)]
                if not left[id(given)]:
                    ended.add(places[number])
            else:
                step.number = float(given)
        if not left[id(one)]:
            ended.add(to)
        free += ended
        if isinstance(one.keeps, Between):  # the kernel counts down in it, and a formula may be computed again
            kept.append(Between.from_buffer_copy(one.keeps))
            data = ctypes.addressof(kept[-1])
        step.code, step.to, step.data = _CODE[one.name], to, data
        step.a, step.b, step.c = places
    return steps, strips, kept


def _in_order(last: Sequence[Formula]) -> list[Formula]:
    """These and all that they need, in the order in which they were written."""
    found, waiting = dict[int, Formula](), list(last)
    while waiting:
        one = waiting.pop()
        if one.born not in found:
            found[one.born] = one
            waiting += [given for given in one.inputs if isinstance(given, Formula)]
    return [found[born] for born in sorted(found)]
