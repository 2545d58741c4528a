"""Stored tensors as numpy has them: where their elements lie in a file, and what is read of them.

Elements are those of the tensor as one row, in the order of the file. Of dtypes with less than 8 bits, and
of the blocks of GGUF, which are never computed on, a byte counts as an element.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import DTYPE_BITS, KEPT, WINDOW, Making, ReadRows, ReadStored, Ref

INTEGERS = frozenset({"U8", "I16", "I32", "I64"})  # what indices among the factors are stored as
_PART = 1 << 18  # elements
_DECODED = 1 << 17  # elements that are decoded at once
BAND = 1 << 23  # bytes of columns that are read at once, where only some are asked for


def held_as(dtype: str) -> np.dtype[Any]:
    """What an element is held as: by its codec, or unsigned integers of its size where no arithmetic is done on it."""
    codec = BY_DTYPE.get(dtype)
    return np.dtype(f"u{max(DTYPE_BITS.get(dtype, 8) // 8, 1)}") if codec is None else codec.held


def byte_of(offset: int, dtype: str, first: int) -> int:
    """The byte of a file where element `first` lies of a tensor that begins at `offset`."""
    return offset + first * held_as(dtype).itemsize


def elements_between(whole: Ref, part: Ref) -> int:
    """How many elements of a tensor come before a part of it."""
    return (part.offset - whole.offset) // held_as(whole.spec.dtype).itemsize


def read_stored(inputs: Inputs, ref: Ref, first: int, last: int, out: Array | None = None) -> Array:
    """Elements first..last of a tensor on disk, flat, as they are stored: in `out`, or in a new array. Of one that is
    made of such, as they are made."""
    if ref.made is not None:
        return _make(inputs, ref, ref.made, first, last, out)
    if out is None:
        out = np.empty(last - first, held_as(ref.spec.dtype))
    inputs.read_into(ref.path, byte_of(ref.offset, ref.spec.dtype, first), as_bytes(out))
    return out


def read_as(inputs: Inputs, ref: Ref, first: int, last: int, out: Array, dtype: str) -> bool:
    """out = elements first..last as that dtype stores them, each rounded once, where they are made so at once: returns
    whether they are."""
    if ref.made is None or not ref.made.casts:
        return False
    _make(inputs, ref, ref.made, first, last, out, dtype)
    return True


def _make(
    inputs: Inputs, ref: Ref, made: Making, first: int, last: int, out: Array | None, dtype: str = "F64"
) -> Array:
    read = reading_rows(inputs)
    width = max(made.width or ref.spec.numel // max(ref.spec.shape[0], 1), 1)
    begin, end = first // width, -(-last // width)
    if not made.decodes:
        rows = np.ascontiguousarray(made.rows(read, made.first + begin, made.first + end), np.float64)
        found = rows.reshape(-1)[first - begin * width : last - begin * width]
        if out is None:
            found.flags.writeable = False  # it may be of what is kept for others
            return found
        out[:] = found
        return out
    out = np.empty(last - first) if out is None else out
    step = max(1, _DECODED // width)
    for start in range(begin, end, step):  # what lies between codes and numbers stays in the cache
        stop = min(end, start + step)
        low, high = max(first, start * width), min(last, stop * width)
        part, whole = out[low - first : high - first], high - low == (stop - start) * width
        more = (dtype, part if whole else None) if made.casts else ()
        rows = made.rows(reading(inputs), made.first + start, made.first + stop, *more)
        if not whole or not np.may_share_memory(rows, part):
            part[:] = rows.reshape(-1)[low - start * width : high - start * width]
    return out


def reading_rows(inputs: Inputs) -> ReadRows:
    """How rows of stored tensors are read of these files."""

    def read(source: Ref, begin: int, end: int) -> Array:
        width = source.spec.numel // max(source.spec.shape[0], 1)
        return read_tensor(inputs, source, begin * width, end * width).reshape(end - begin, width)

    return read


def reading(inputs: Inputs) -> ReadStored:
    """How codes, and what belongs to them, are read of these files."""
    return functools.partial(_read_part, inputs)


def _read_part(
    inputs: Inputs, ref: Ref, width: int, first: int, last: int, begin: int = 0, end: int | None = None
) -> Array:
    """As spec.tensors.ReadStored has it. Of a few columns of many rows, as where a weight is stored transposed, those
    beside them are read with them, and kept for the next who asks."""
    end = width if end is None else end
    if end - begin == width or not width:
        return read_stored(inputs, ref, first * width, last * width).reshape(last - first, width)
    size = max(1, last - first) * held_as(ref.spec.dtype).itemsize
    band = max(1, min(width, BAND // size))
    parts = []
    for number in range(begin // band, -(-end // band)):
        low, high = number * band, min(width, (number + 1) * band)
        key = (ref.path, ref.offset, ref.spec, first, last, number)
        columns = _kept(inputs, key, functools.partial(_columns, inputs, ref, width, (first, last), (low, high)))
        parts.append(columns[:, max(begin, low) - low : min(end, high) - low])
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _columns(inputs: Inputs, ref: Ref, width: int, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    (first, last), (low, high) = rows, columns
    if high - low == width:
        return read_stored(inputs, ref, first * width, last * width).reshape(last - first, width)
    found = np.empty((last - first, high - low), held_as(ref.spec.dtype))
    for row in range(first, last):
        read_stored(inputs, ref, row * width + low, row * width + high, found[row - first])
    return found


def _kept(inputs: Inputs, key: Hashable, make: Callable[[], Array]) -> Array:
    """What `make` reads, or has read: of KEPT that were asked for last."""
    with inputs.kept_lock:  # also while it is read, or others would read the same
        if (window := inputs.kept.pop(key, None)) is None:
            while len(inputs.kept) >= KEPT:
                del inputs.kept[next(iter(inputs.kept))]  # what was not asked for the longest
            window = make()
        inputs.kept[key] = window
    found: Array = window
    return found


def exact_quotients(inputs: Inputs, ref: Ref, first: int, last: int) -> Array:
    """Elements first..last of a tensor that is made of quotients (Making.over), flat, as rationals."""
    made = ref.made
    assert made is not None and made.over is not None
    rows, divisor = made.over
    plain = made._replace(rows=rows, casts=False)
    by = Fraction(divisor(reading(inputs)))
    found: Array = np.array([Fraction(number) / by for number in _make(inputs, ref, plain, first, last, None).tolist()])
    return found


def read_tensor(inputs: Inputs, ref: Ref, first: int, last: int) -> Array:
    """Elements first..last of a tensor on disk, flat, as float64: exact for what is computed on, and for indices."""
    stored = read_stored(inputs, ref, first, last)
    if ref.spec.dtype in INTEGERS:
        return stored.view(f"{ref.spec.dtype[0].lower()}{stored.itemsize}").astype(np.float64)
    return stored if ref.made is not None and not ref.made.decodes else doubles(stored, ref.spec.dtype)


def require_finite(inputs: Inputs, ref: Ref) -> int:
    """Read a factor once; returns how many of its rows (along its first dimension) are all zero.

    Raises NonFiniteError, naming the tensor, for NaN or infinity; of a factor that is made, what it is made of.
    """
    width = max(1, ref.spec.numel // max(1, ref.spec.shape[0] if ref.spec.shape else 1))
    if ref.made is not None and ref.made.few is not None and ref.columns is None:
        at, numbers = ref.made.few(reading_rows(inputs))
        if np.isfinite(numbers).all():
            return ref.spec.shape[0] - len(np.unique(at[numbers != 0] // width))
    zero, step = 0, max(1, _PART // width) * width
    for first in range(0, ref.spec.numel, step):
        part = read_tensor(inputs, ref, first, min(ref.spec.numel, first + step))
        if np.count_nonzero(part == 0) >= width:  # else there is no such row
            zero += int(np.count_nonzero(~part.reshape(-1, width).any(axis=1)))
        if not np.isfinite(part).all():
            _require_of_finite(inputs, ref)
            where = int(np.flatnonzero(~np.isfinite(part))[0])
            raise NonFiniteError(
                f"{ref.path}: {shown(ref.spec.name)} holds {part[where].item()} at element {first + where:,}; "
                "the adapter is damaged, or its training diverged"
            )
    return zero


def _require_of_finite(inputs: Inputs, made: Ref) -> None:
    """What is said of a factor that is made, and is not finite: nobody knows it by its name."""
    if made.made is None or made.made.decodes:
        return
    for source in made.made.sources:
        require_finite(inputs, source)
    *more, last = dict.fromkeys(shown(source.spec.name) for source in made.made.sources)
    raise NonFiniteError(
        f"{made.path}: what is computed from {', '.join(more) + ' and ' + last if more else last} is not finite, since "
        "numbers there are so large or so small; the adapter is damaged, or its training diverged"
    )


def read_rows(inputs: Inputs, ref: Ref, first: int, last: int, width: int) -> Array:
    """Rows first..last of a tensor on disk, of `width` elements each, as a float64 matrix (last − first, width); of its
    columns if chosen."""
    if ref.columns is None:
        return read_tensor(inputs, ref, first * width, last * width).reshape(last - first, width)
    if ref.turns > 1:
        return doubles(_read_in_turn(inputs, ref, width)[first:last], ref.spec.dtype)
    chosen = np.empty((last - first, len(ref.columns)))
    step = max(1, _PART // width)  # what is read beside the columns is let go of soon
    for begin in range(first, last, step):
        end = min(last, begin + step)
        stored = read_stored(inputs, ref, begin * width, end * width).reshape(end - begin, width)
        columns = stored[:, ref.columns.start : ref.columns.stop : ref.columns.step]
        chosen[begin - first : end - first] = doubles(columns, ref.spec.dtype)
    return chosen


def _read_in_turn(inputs: Inputs, ref: Ref, width: int) -> Array:
    """The columns of one of many (experts), as stored. The next will be asked for as well, and all rows are read to
    find them: so those of several are kept at once, in KEPT windows of WINDOW bytes at most."""
    columns = ref.columns
    assert columns is not None
    in_turn, turns, rows = columns.step > 1, ref.turns, ref.spec.shape[0]
    turn = columns.start if in_turn else columns.start // len(columns)
    several = max(1, WINDOW * turns // max(ref.spec.nbytes, 1))
    begin = turn - turn % several

    def make() -> Array:
        window = np.empty((min(several, turns - begin), rows, len(columns)), held_as(ref.spec.dtype))
        step = max(1, _PART // width)
        for start in range(0, rows, step):
            end = min(rows, start + step)
            stored = read_stored(inputs, ref, start * width, end * width)
            cut = (end - start, -1, turns) if in_turn else (end - start, turns, -1)
            sets = stored.reshape(cut).transpose((2, 0, 1) if in_turn else (1, 0, 2))
            window[:, start:end] = sets[begin : begin + len(window)]
        return window

    chosen: Array = _kept(inputs, (ref.path, ref.offset, ref.spec, begin), make)[turn - begin]
    return chosen


def as_bytes(array: Array) -> memoryview:
    """The bytes of a contiguous array: a view."""
    return array.view(np.uint8).data
