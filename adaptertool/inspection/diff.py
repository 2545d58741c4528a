"""Two tensors of one shape, block by block: whether their bits are equal, and if not how far they are apart."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs import BY_DTYPE, COMPUTED
from adaptertool.codecs.difference import Difference
from adaptertool.codecs.numbers import doubles, same_bits
from adaptertool.codecs.tensors import held_as, read_stored
from adaptertool.engine.pool import Job, run_jobs
from adaptertool.errors import NonFiniteError
from adaptertool.files.reader import Inputs
from adaptertool.numerics.held import Held, Room
from adaptertool.numerics.randomized_svd import leading_of_rank
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.spectrum import entropy_rank, stable_rank
from adaptertool.numerics.ulps import ulps
from adaptertool.reports.diff import TensorDiff
from adaptertool.spec.tensors import Ref

_ELEMENTS = 1 << 20  # of a block
_CACHED = 1 << 15  # elements that are compared at once
_SPECTRUM = 32  # singular values that are found, where there are many


class _Part(NamedTuple):
    """What was found in a block."""

    differ: int = 0  # elements
    not_finite: int = 0
    square: float = 0.0  # ‖B − A‖²
    largest: float = 0.0  # |B − A|
    apart: int = 0  # representable numbers
    size: float | None = None  # ‖A‖²; None: not known yet

    def and_then(self, other: _Part) -> _Part:
        """What was found in this block and another together, where sizes are known."""
        return _Part(
            self.differ + other.differ,
            self.not_finite + other.not_finite,
            self.square + other.square,
            max(self.largest, other.largest),
            max(self.apart, other.apart),
            (self.size or 0.0) + (other.size or 0.0),
        )


class Comparison:
    """The comparison of two tensors of one shape, and of one dtype unless arithmetic is done on both."""

    def __init__(self, inputs: Inputs, a: Ref, b: Ref) -> None:
        self.a, self.b, self._inputs = a, b, inputs
        self._computed = a.spec.dtype in COMPUTED and b.spec.dtype in COMPUTED
        self._parts: dict[int, _Part] = {}
        self._ranks: tuple[float, float] | None = None

    def parts(self) -> Iterator[Job]:
        """Jobs that compare the blocks. Those whose bits are equal are not looked at further."""
        for first in range(0, self._count, _ELEMENTS):
            yield functools.partial(self._compare, first)

    def rest(self, *, ranks: bool) -> Iterator[Job]:
        """Jobs that find what else there is to know of tensors that differ."""
        if not self._computed or not self.differ:
            return
        for first, part in self._parts.items():
            if part.size is None:
                yield functools.partial(self._measure, first)
        if ranks and len(self.a.shape) == 2:
            yield self._find_ranks

    @property
    def differ(self) -> int:
        """Elements."""
        return sum(part.differ for part in self._parts.values())

    def told(self) -> TensorDiff | None:
        """What was found, after all jobs; None where nothing differs."""
        same_dtype = self.a.spec.dtype == self.b.spec.dtype
        if same_dtype and not self.differ:
            return None
        name, a, b = self.a.spec.name, str(self.a.spec), str(self.b.spec)
        status, share = "changed" if same_dtype else "dtype-changed", self.differ / max(self._count, 1)
        if not self._computed:
            return TensorDiff(name, status, a, b, self.differ, share)
        whole = functools.reduce(_Part.and_then, (self._parts[first] for first in sorted(self._parts)), _Part())
        norm, size = math.sqrt(whole.square), math.sqrt(whole.size or 0.0)
        stable, effective = self._ranks or (None, None)
        return TensorDiff(
            name, status, a, b, self.differ, share,
            rel_error=_number(norm / size) if size else None,
            norm=_number(norm),
            max_abs=_number(whole.largest),
            max_ulp=whole.apart if same_dtype else None,
            not_finite=whole.not_finite,
            stable_rank=stable,
            effective_rank=effective,
        )  # fmt: skip

    @property
    def _count(self) -> int:
        """Elements; bytes, where several may share one."""
        return self.a.spec.nbytes // held_as(self.a.spec.dtype).itemsize

    def _read(self, ref: Ref, first: int) -> Array:
        """A block, as it is stored."""
        return read_stored(self._inputs, ref, first, min(first + _ELEMENTS, self._count))

    def _compare(self, first: int, _: Workspace) -> None:
        dtype, other_dtype = self.a.spec.dtype, self.b.spec.dtype
        one, other = self._read(self.a, first), self._read(self.b, first)
        same = int(np.count_nonzero(same_bits(one, other))) if dtype == other_dtype else 0
        if same == len(one):
            self._parts[first] = _Part()
        elif self._computed:
            self._parts[first] = _apart(one, dtype, other, other_dtype)
        else:
            self._parts[first] = _Part(len(one) - same)

    def _measure(self, first: int, _: Workspace) -> None:
        numbers = _finite(doubles(self._read(self.a, first), self.a.spec.dtype))
        self._parts[first] = self._parts[first]._replace(size=float(numbers @ numbers))

    def _find_ranks(self, _: Workspace) -> None:
        try:
            with Held(Difference(self._inputs, self.a, self.b), Room()) as held:
                found = leading_of_rank(held, _SPECTRUM, self.a.spec.name)
        except NonFiniteError:
            return  # it is counted, and has no spectrum
        values = found.svd.values  # the last is the norm of all that was not found
        if values.any():
            known, rest = values[:-1], float(values[-1] ** 2)
            self._ranks = stable_rank(known, rest), entropy_rank(known, rest)


def compare(
    found: list[Comparison], threads: int, progress: Callable[[int], None], *, ranks: bool
) -> Iterator[TensorDiff | None]:
    """What each has to tell, in order."""
    run_jobs(_reported(found, progress), threads)
    run_jobs((job for one in found for job in one.rest(ranks=ranks)), threads)
    return (one.told() for one in found)


def _reported(found: list[Comparison], progress: Callable[[int], None]) -> Iterator[Job]:
    for one in found:
        yield from one.parts()
        progress(one.a.spec.nbytes + one.b.spec.nbytes)


def _apart(one: Array, dtype: str, other: Array, other_dtype: str) -> _Part:
    """How far two blocks are apart, compared in pieces that stay in the cache, one after the other."""
    found = _Part(size=0.0)
    for first in range(0, len(one), _CACHED):
        last = first + _CACHED
        found = found.and_then(_piece(one[first:last], dtype, other[first:last], other_dtype))
    return found


def _piece(one: Array, dtype: str, other: Array, other_dtype: str) -> _Part:
    before, after = np.empty(len(one)), np.empty(len(other))
    codec, other_codec = BY_DTYPE[dtype], BY_DTYPE[other_dtype]
    largest = codec.decode(one, before), other_codec.decode(other, after)
    differ = ~same_bits(one, other) if dtype == other_dtype else _unequal(before, after)
    count, odd = int(np.count_nonzero(differ)), 0
    if not all(map(math.isfinite, largest)):
        finite = np.isfinite(before) & np.isfinite(after)
        odd = int(np.count_nonzero(differ & ~finite))
        one, other = one[finite], other[finite]
        after = np.where(finite, after, 0.0)
        before = _finite(before)
        off = np.where(finite, after - before, 0.0)
    else:
        off = after - before
    known = count and dtype == other_dtype
    apart = int(ulps(codec.words(one), codec.words(other)).max(initial=0)) if known else 0
    far = max(float(off.max()), -float(off.min()))
    return _Part(count, odd, float(off @ off), far, apart, float(before @ before))


def _unequal(one: Array, other: Array) -> Array:
    """NaN is equal to NaN."""
    unequal: Array = (one != other) & ~(np.isnan(one) & np.isnan(other))
    return unequal


def _finite(numbers: Array) -> Array:
    """The numbers, with 0 in the place of what is not finite."""
    return np.nan_to_num(numbers, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _number(value: float) -> float | None:
    """The number; None for what float64 cannot hold."""
    return value if math.isfinite(value) else None
