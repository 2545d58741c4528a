"""Two tensors of one shape, block by block: whether their bits are equal, and if not how far they are apart."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from adaptertool.arithmetic.block import part
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs import COMPUTED
from adaptertool.codecs.difference import Difference
from adaptertool.codecs.numbers import apart, doubles
from adaptertool.codecs.tensors import held_as, read_stored
from adaptertool.engine.pool import Job, run_jobs
from adaptertool.engine.progress import expect_tensors
from adaptertool.errors import NonFiniteError
from adaptertool.files.reader import Inputs
from adaptertool.numerics.held import Held, Room
from adaptertool.numerics.randomized_svd import leading_of_rank
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.spectrum import entropy_rank, stable_rank
from adaptertool.numerics.statistics import Apart, differing
from adaptertool.reports.diff import TensorDiff
from adaptertool.spec.tensors import Ref

_ELEMENTS = 1 << 19  # of a block
_CACHED = 1 << 15  # elements of two dtypes that are compared at once
_SPECTRUM = 32  # singular values that are found, where there are many


class Comparison:
    """The comparison of two tensors of one shape, and of one dtype unless arithmetic is done on both."""

    def __init__(self, inputs: Inputs, a: Ref, b: Ref) -> None:
        self.a, self.b, self._inputs = a, b, inputs
        self._computed = a.spec.dtype in COMPUTED and b.spec.dtype in COMPUTED
        self._parts: dict[int, Apart] = {}
        self._ranks: tuple[float, float] | None = None

    def parts(self) -> Iterator[Job]:
        """Jobs that compare the blocks."""
        for first in range(0, self._count, _ELEMENTS):
            yield functools.partial(self._compare, first)

    def rest(self) -> Iterator[Job]:
        """A job that finds the ranks of the difference, if it has any."""
        if self._computed and self.differ and len(self.a.shape) == 2:
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
        whole = functools.reduce(_together, (self._parts[first] for first in sorted(self._parts)), Apart())
        norm, size = math.sqrt(whole.square), math.sqrt(whole.size)
        stable, effective = self._ranks or (None, None)
        return TensorDiff(
            name, status, a, b, self.differ, share,
            rel_error=_number(norm / size) if size else None,
            norm=_number(norm),
            max_abs=_number(whole.largest),
            max_ulp=whole.distance if same_dtype else None,
            not_finite=whole.odd,
            stable_rank=stable,
            effective_rank=effective,
        )  # fmt: skip

    @property
    def _count(self) -> int:
        """Elements; bytes, where several may share one."""
        return self.a.spec.nbytes // held_as(self.a.spec.dtype).itemsize

    def _read(self, ref: Ref, first: int, buffer: Array) -> Array:
        """A block, as it is stored: valid until the next is read into that buffer."""
        last = min(first + _ELEMENTS, self._count)
        return read_stored(self._inputs, ref, first, last, part(buffer, held_as(ref.spec.dtype), last - first))

    def _compare(self, first: int, space: Workspace) -> None:
        dtype, other_dtype = self.a.spec.dtype, self.b.spec.dtype
        space.fit(_ELEMENTS)
        one, other = self._read(self.a, first, space.stored), self._read(self.b, first, space.rounded)
        if not self._computed:
            self._parts[first] = Apart(differing(one, other))
        elif dtype == other_dtype:
            self._parts[first] = apart(one, other, dtype)
        else:
            self._parts[first] = _between(one, dtype, other, other_dtype)

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
    expect_tensors(progress, (ref for one in found for ref in (one.a, one.b)))
    run_jobs(_reported(found, progress), threads)
    if ranks:
        run_jobs((job for one in found for job in one.rest()), threads)
    return (one.told() for one in found)


def _reported(found: list[Comparison], progress: Callable[[int], None]) -> Iterator[Job]:
    for one in found:
        yield from one.parts()
        progress(one.a.spec.nbytes + one.b.spec.nbytes)


def _between(one: Array, dtype: str, other: Array, other_dtype: str) -> Apart:
    """How far two blocks of two dtypes are apart, as numbers: −0.0 is 0, and NaN is NaN."""
    parts = []
    for first in range(0, len(one), _CACHED):
        pair = doubles(one[first : first + _CACHED], dtype), doubles(other[first : first + _CACHED], other_dtype)
        for numbers in pair:
            numbers += 0.0
            numbers[np.isnan(numbers)] = np.nan
        parts.append(apart(*pair, "F64"))
    return functools.reduce(_together, parts, Apart())


def _together(one: Apart, other: Apart) -> Apart:
    """What was found in a block and the next."""
    return Apart(
        one.differ + other.differ,
        one.odd + other.odd,
        one.lost + other.lost,
        max(one.distance, other.distance),
        one.square + other.square,
        one.size + other.size,
        max(one.largest, other.largest),
    )


def _number(value: float) -> float | None:
    """The number; None for what float64 cannot hold."""
    return value if math.isfinite(value) else None
