"""What a dense weight is in a QLoRA run: stored in 4 bits as bitsandbytes does it, and decoded again.

With x the numbers of the weight as one row, in blocks of 64 that may cross its rows, all of it in float32:

    absmax = max |x| of a block,    code = the number of middles between neighbours of the table that are below
    x·(1 / absmax),    W = table[code]·absmax, rounded to the dtype that the weight was loaded in

The last block, where it is shorter, is divided by its absmax. Double quantisation stores absmax − o in 8 bits as well,
in blocks of 256, where o is the mean of all absmax of the tensor:

    absmax ≈ map[code]·max |absmax − o| + o

Devices sum up that mean in an order of their own; here it is the correctly rounded one, so that scales may differ from
those of a run in their last bit.

Source: bitsandbytes 0.50.2 (functional.py: quantize_4bit, create_dynamic_map; backends/default/ops.py, whose codes are
those of the CUDA kernels kQuantizeBlockwise, quantize_blockwise).
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.errors import NonFiniteError, shown
from adaptertool.numerics.rounding import Array
from adaptertool.spec.choices import AS_TRAINED
from adaptertool.spec.tensors import Making, ReadStored, Ref

BLOCK, NESTED = 64, 256  # numbers with an absmax in common, and absmax with one
_LEAST = np.float32(1e-38)  # below this an absmax is no divisor
_COUNTED = 16  # middles
_READ = 1 << 20  # elements at once, where all are read before the first is decoded

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = tuple(sign * one / 12 for sign in (-1.0, 1.0) for one in (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0))


class Table(NamedTuple):
    """The numbers that codes mean, in ascending order, and the middles between neighbours; float32."""

    numbers: Array
    middles: Array

    def nearest(self, values: Array) -> Array:
        """The number of the table for each value; of a middle the lower one."""
        if len(self.middles) > _COUNTED:
            return np.take(self.numbers, np.searchsorted(self.middles, values, side="left"), mode="clip")
        below, is_below = np.zeros(values.shape, np.int8), np.empty(values.shape, np.bool_)
        for middle in self.middles:  # a fifth of the time of a search
            below += np.greater(values, middle, out=is_below)
        return np.take(self.numbers, below, mode="clip")


def _table(numbers: tuple[float, ...]) -> Table:
    ordered = np.sort(np.array(numbers, np.float32))
    return Table(ordered, (ordered[:-1] + ordered[1:]) / np.float32(2))


TABLES = {"nf4": _table(_NF4), "fp4": _table(_FP4)}


class FourBits(NamedTuple):
    """How a run stored its base."""

    name: str  # as typed, of AS_TRAINED
    table: Table
    nested: bool


CHOICES = {name: FourBits(name, TABLES[name.removesuffix("-double")], name.endswith("-double")) for name in AS_TRAINED}


def as_loaded(weight: Ref, how: FourBits, dtype: str) -> Ref:
    """The weight, a matrix, as a run has it that loads it as `dtype` and then stores it in 4 bits."""
    width, count = weight.spec.shape[-1], weight.spec.numel
    step = BLOCK * (NESTED if how.nested else 1)
    offset = _Once(lambda read: _mean(read, weight, dtype))

    def rows(read: ReadStored, first: int, last: int) -> Array:
        begin, end = first * width, last * width
        low, high = begin - begin % step, min(end + -end % step, count)
        values = _loaded(read, weight, dtype, low, high)
        sizes = _largest(values)
        scaled = _scaled(values, sizes, BLOCK)
        if how.nested:
            sizes = _eight_bits(sizes, offset(read))
        found = how.table.nearest(scaled)
        found *= np.repeat(sizes, BLOCK)[: len(found)]
        cut = found[begin - low : end - low]
        return doubles(rounded(cut.astype(np.float64), dtype), dtype).reshape(last - first, width)

    spec = weight.spec._replace(dtype="F64", nbytes=8 * count)
    made = Making((weight,), rows, width=width, decodes=True)
    return Ref(weight.path, weight.offset, spec, made=made)


class _Once:
    """A number that takes a pass over a tensor, made by the first who asks."""

    def __init__(self, make: Callable[[ReadStored], np.float32]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._found: np.float32 | None = None

    def __call__(self, read: ReadStored) -> np.float32:
        with self._lock:
            if self._found is None:
                self._found = self._make(read)
            return self._found


def _loaded(read: ReadStored, weight: Ref, dtype: str, first: int, last: int) -> Array:
    """Elements of a weight as `dtype`, in float32. Raises NonFiniteError."""
    numbers = doubles(read(weight, 1, first, last).reshape(-1), weight.spec.dtype)
    if dtype != weight.spec.dtype:
        numbers = doubles(rounded(numbers, dtype), dtype)
    if not np.isfinite(numbers).all():
        raise NonFiniteError(
            f"{weight.path}: {shown(weight.spec.name)} holds NaN or infinity, or numbers beyond {dtype}: in 4 bits it "
            "makes NaN of whole blocks"
        )
    return numbers.astype(np.float32)


def _largest(values: Array, block: int = BLOCK) -> Array:
    """The largest magnitude of each block, float32."""
    found: Array = np.maximum.reduceat(np.abs(values), np.arange(0, len(values), block))
    return found


def _scaled(values: Array, sizes: Array, block: int) -> Array:
    """The values over the size of their block, as bitsandbytes has it, from −1 to 1."""
    whole = len(values) // block
    rest = np.maximum(sizes, _LEAST)
    scaled = np.empty_like(values)
    cut = whole * block
    inverse = np.float32(1) / rest[:whole]
    np.multiply(values[:cut].reshape(whole, block), inverse[:, None], out=scaled[:cut].reshape(whole, block))
    if cut < len(values):
        scaled[cut:] = values[cut:] / rest[-1]
    return np.clip(scaled, -1, 1, out=scaled)


def _mean(read: ReadStored, weight: Ref, dtype: str) -> np.float32:
    """The mean of the absmax of all blocks, correctly rounded."""
    count, total = weight.spec.numel, []
    for first in range(0, count, _READ):
        total.append(math.fsum(_largest(_loaded(read, weight, dtype, first, min(count, first + _READ))).tolist()))
    return np.float32(math.fsum(total) / max(1, -(-count // BLOCK)))


def _eight_bits(sizes: Array, offset: np.float32) -> Array:
    """absmax, stored in 8 bits and decoded again, float32. sizes: from the beginning of a block of these on."""
    apart = sizes - offset
    largest = _largest(apart, NESTED)
    found = dynamic_map().nearest(_scaled(apart, largest, NESTED))
    found *= np.repeat(largest, NESTED)[: len(found)]
    found += offset
    return found


@functools.cache
def dynamic_map() -> Table:
    """The 256 numbers of 8 bits: of each of seven decades 1, 2, ... 64 fractions of either sign, in the middles of
    equal parts of 0.1 to 1; 0 and 1."""
    numbers = [0.0, 1.0]
    for decade in range(7):
        ends = np.array(_linspace(1 + 2**decade), np.float32)
        middles = (ends[:-1] + ends[1:]) / np.float32(2)
        some = (np.float32(10.0 ** (decade - 6)) * middles).tolist()
        numbers += [*some, *(-one for one in some)]
    return _table(tuple(numbers))


def _linspace(count: int) -> list[float]:
    """0.1 to 1 in `count` equal steps, as torch has them: from the nearer end, float32, by a fused multiply-add (which
    float64 is here, since it holds the products and the sums)."""
    begin, end = float(np.float32(0.1)), 1.0
    step = float((np.float32(end) - np.float32(begin)) / np.float32(count - 1))
    return [begin + step * one if one < count // 2 else end - step * (count - 1 - one) for one in range(count)]
