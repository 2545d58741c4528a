"""Formulas as the kernel computes them, strip by strip (kernel/strips.h): which steps, and where each finds its
numbers. Those who write formulas have lazy.py."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.numerics.compiled import FUNCTIONS
from adaptertool.numerics.joined_steps import Form, Given, joined

_NUMBERS = ("number", "other")  # of a step
_STRIP, _NUMBER = 256, -1  # as in kernel/strips.h, whose steps these are, in their order
STEPS = (
    *("READ_BF16", "READ_F16", "READ_F32", "READ_F64", "READ_TRUTH", "FILL"),
    *("ADD", "SUBTRACT", "MULTIPLY", "DIVIDE", "LESS", "LESS_EQUAL", "EQUAL", "AND", "OR", "SMALLER", "LARGER"),
    *("ADD_TIMES", "TIMES_ADD_TIMES", "SAME", "MAGNITUDE", "NOT", "CHOICE", "BETWEEN"),
    *(f"{name}_{dtype}" for name in ("DIFFERENCE", "ADD_DIFFERENCE") for dtype in ("BF16", "F16", "F32")),
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
        *((name, ctypes.c_double) for name in _NUMBERS),
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


class _Compiled(NamedTuple):
    """The steps of a formula, without what two of the same form do not share: numbers, and where data lie."""

    steps: bytes  # of `_Step`s
    length: int  # how many
    strips: int  # that they fill
    numbers: Sequence[tuple[int, str, Given]]  # (step, which of _NUMBERS, where it stands)
    data: Sequence[tuple[int, int]]  # (step, the Formula that has the address)


def run(last: Sequence[Formula]) -> list[float]:
    """Compute these steps, and what they need; returns the sums that are among them."""
    order = _in_order(last)
    compiled = _compiled(form_of(order))
    steps = (_Step * compiled.length).from_buffer_copy(compiled.steps)
    for step, name, at in compiled.numbers:
        setattr(steps[step], name, order[at.formula].inputs[at.number])
    kept = list[Between]()
    for step, formula in compiled.data:
        steps[step].data = order[formula].data
        if isinstance(keeps := order[formula].keeps, Between):  # the kernel counts down in it, and it may be run again
            kept.append(Between.from_buffer_copy(keeps))
            steps[step].data = ctypes.addressof(kept[-1])
    summed = sum(one.name == "SUM" for one in last)
    room, places = np.empty(compiled.strips * _STRIP), np.zeros(compiled.strips, np.uintp)
    found = np.zeros(max(1, summed) * _WAITING)
    where = (array.ctypes.data for array in (room, places, found))
    job = _Job(ctypes.addressof(steps), compiled.length, last[0].size, *where, summed)
    FUNCTIONS["strips"](ctypes.addressof(job))
    return [0.0 + float(one) for one in found[:summed]]  # numpy begins at 0, so that no sum is −0


def form_of(order: Sequence[Formula]) -> Form:
    """What formulas have in common that differ in their numbers alone."""
    place = {id(one): number for number, one in enumerate(order)}
    return tuple((one.name, *[place.get(id(given)) for given in one.inputs]) for one in order)


def _in_order(last: Sequence[Formula]) -> list[Formula]:
    """These and all that they need, in the order in which they were written."""
    found, waiting = dict[int, Formula](), list(last)
    while waiting:
        one = waiting.pop()
        if one.born not in found:
            found[one.born] = one
            waiting += [given for given in one.inputs if isinstance(given, Formula)]
    return [found[born] for born in sorted(found)]


@functools.lru_cache(maxsize=256)
def _compiled(form: Form) -> _Compiled:
    """The steps, each after those that it needs, and how many strips they fill: one has that of another from the last
    step on that needs the other, but for this step itself."""
    nodes = joined(form)
    left = Counter(given for node in nodes.values() for given in node.inputs)
    strip, free, strips = dict[int, int](), list[int](), 0
    steps, numbers, data = (_Step * len(nodes))(), list[tuple[int, str, Given]](), list[tuple[int, int]]()
    for number, (formula, node) in enumerate(nodes.items()):
        if not free:
            free.append(strips)
            strips += 1
        strip[formula] = to = free.pop()
        places, ended, names = [_NUMBER] * 3, set[int](), iter(_NUMBERS)
        for position, given in enumerate(node.inputs):
            if isinstance(given, Given):
                numbers.append((number, next(names), given))
                continue
            left[given] -= 1
            places[position] = strip[given]
            if not left[given]:
                ended.add(strip[given])
        if not left[formula]:
            ended.add(to)
        free += ended
        data.append((number, node.data))
        steps[number].code, steps[number].to, steps[number].number = _CODE[node.name], to, 1
        steps[number].a, steps[number].b, steps[number].c = places
    return _Compiled(bytes(steps), len(nodes), strips, numbers, data)
