"""Products with a matrix that is read in blocks of rows, as often as they are asked for.

A leading part needs a few digits only of the products that lead to it, so these are made in float32, in half the time
and from half the memory, where the numbers are in its range; what was found is then measured on all elements in
float64. While there is room for it the matrix is kept from one pass to the next as float32. What comes out does not
depend on that.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from adaptertool.numerics import product
from adaptertool.numerics.lowrank import Factors
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.there_back import there_and_back

_ROOM = 160 << 20  # bytes of all matrices that are kept at a time
_SMALL, _LARGE = 2.0**-40, 2.0**40  # largest elements between which the squares of float32 are in its range
_ROUNDED = 2.0**-12  # share of ‖D‖² in elements that are no float32, below which
_LITTLE = 2.0**-14  # what is left of ‖D‖² may be measured on float32, down to this share


class Single(NamedTuple):
    """Rows of a matrix, rounded to float32."""

    first: int
    rows: Array  # float32 (n, wide)
    square: float  # the sum of their squares
    rounded: float  # that of those that are no float32
    largest: float  # magnitude


class Matrix(Protocol):
    """Rows that can be read again and again."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """The blocks (first row, rows), rows float64 (n, wide); valid until the next, and may be changed."""

    def singles(self, out: Array | None) -> Iterator[Single]:
        """The same numbers in blocks that are always the same: in the rows of `out`, float32 (high, wide), or else
        valid until the next."""


class Products(Protocol):
    """A matrix D that products are made with, by some device."""

    matrix: Matrix

    def narrow(self) -> bool:
        """Whether products may be made in float32, as far as is known: after the first product it is."""

    def square(self) -> float:
        """‖D‖², Frobenius."""

    def times(self, right: Array, *, back: bool) -> tuple[Array, Array | None]:
        """D·Vᵀ (high, n) and, where `back` is asked for, (Dᵀ·D·Vᵀ)ᵀ (n, wide), for V (n, wide), of the dtype of V."""

    def left_over(self, factors: Factors) -> tuple[float, float]:
        """‖D − B·A‖ and ‖D‖, Frobenius, added up over all elements in float64: nothing is estimated. factors: B (high,
        r) and A (r, wide), float64."""


def narrowed(blocks: Iterator[tuple[int, Array]], out: Array | None) -> Iterator[Single]:
    """Blocks of float64 as Matrix.singles has them."""
    for first, rows in blocks:
        single = np.empty(rows.shape, np.float32) if out is None else out[first : first + len(rows)]
        with np.errstate(over="ignore"):  # is then larger than what is computed with
            single[:] = rows
        flat, lost = rows.reshape(-1), rows[single != rows]
        yield Single(first, single, float(flat @ flat), float(lost @ lost), float(abs(single).max(initial=0.0)))


class Room:
    """Memory that the matrices of several threads share. Buffers are used again, since the system takes as long to make
    new ones as a pass takes."""

    def __init__(self, size: int = _ROOM) -> None:
        self._left, self._free, self._lock = size, list[Array](), threading.Lock()

    def take(self, count: int) -> Array | None:
        """So many float32, flat; None where there is no room."""
        with self._lock:
            fitting = [one for one in self._free if one.size >= count]
            if not fitting:
                while self._free and self._left < 4 * count:
                    self._left += self._free.pop().nbytes
                if self._left < 4 * count:
                    return None
                self._left -= 4 * count
                return np.empty(count, np.float32)
            best = min(fitting, key=lambda one: one.size)
            self._free = [one for one in self._free if one is not best]
            return best

    def give_back(self, buffer: Array) -> None:
        with self._lock:
            self._free.append(buffer)


class Held:
    """Products by numpy, as a context: at its end the room is given back."""

    def __init__(self, matrix: Matrix, room: Room) -> None:
        self.matrix, self._room = matrix, room
        self._square, self._rounded, self._largest = -1.0, 0.0, 0.0
        self._buffer: Array | None = None
        self._kept: list[tuple[int, Array]] = []  # once all of it is in the buffer

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        if self._buffer is not None:
            self._room.give_back(self._buffer)
        self._buffer, self._kept = None, []

    def narrow(self) -> bool:
        return self._square < 0 or _SMALL < self._largest < _LARGE

    def square(self) -> float:
        if self._square < 0:
            for _ in self._singles():
                pass
        return self._square

    def times(self, right: Array, *, back: bool) -> tuple[Array, Array | None]:
        blocks = self._singles() if right.dtype == np.float32 else self._doubles()
        return there_and_back(blocks, right, self.matrix.shape[0], back=back)

    def left_over(self, factors: Factors) -> tuple[float, float]:
        """As Products has it. Each element that float32 rounds moves by its 2^25th part at most: where these are few,
        and more is left than they can move, they are not told apart."""
        square = self.square()  # of float32
        if self.narrow() and self._rounded <= _ROUNDED * square:
            rest = _left_of(self._singles(), factors)
            if not self._rounded or rest > _LITTLE * square:
                return math.sqrt(rest), math.sqrt(square)
        rest = _left_of(self._doubles(), factors)
        return math.sqrt(rest), math.sqrt(self._square)

    def _doubles(self) -> Iterator[tuple[int, Array]]:
        if self._kept and not self._rounded:
            yield from ((first, rows.astype(np.float64)) for first, rows in self._kept)
            return
        square = 0.0
        for first, rows in self.matrix.blocks():
            flat = rows.reshape(-1)
            square += float(flat @ flat)
            yield first, rows
        if self._rounded:
            self._square = square

    def _singles(self) -> Iterator[tuple[int, Array]]:
        if self._kept:
            yield from self._kept
            return
        high, wide = self.matrix.shape
        if self._buffer is None:
            self._buffer = self._room.take(high * wide)
        out = None if self._buffer is None else self._buffer[: high * wide].reshape(high, wide)
        square, rounded, largest, kept = 0.0, 0.0, 0.0, []
        for one in self.matrix.singles(out):
            square, rounded, largest = square + one.square, rounded + one.rounded, max(largest, one.largest)
            kept.append((one.first, one.rows))
            yield one.first, one.rows
        self._square, self._rounded, self._largest = square, rounded, largest
        self._kept = [] if out is None else kept


def _left_of(blocks: Iterator[tuple[int, Array]], factors: Factors) -> float:
    """‖D − B·A‖²"""
    b, a = factors
    return sum(float(product.squares(rows, -b[first : first + len(rows)], a).sum()) for first, rows in blocks)
