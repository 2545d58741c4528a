"""The numbers that a weight may have as it is stored: those of a table, times the scale of their block.

    W[i, j] = table[code[i, j]]·scale[block of (i, j)]·factor / divisor

Formats that can be written again have one (`Weight.lattice`); those that need calibration, an order of columns or zeros
have none. Rows and columns are those of the weight, as `Weight.rows` has them: matrices one after another.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from adaptertool.codecs.quantised.grid import Grid
from adaptertool.codecs.quantised.tables import numbers
from adaptertool.errors import MismatchError, shown
from adaptertool.numerics.rounding import Array
from adaptertool.records import dataclass
from adaptertool.spec.tensors import ReadStored, Ref


@dataclass(frozen=True, slots=True)
class Lattice:
    """How one weight is stored.

    table:   what each code means before its scale, float64; NaN: nothing
    codes:   (how to read, first row, last row) -> the codes of these rows, uint8 (n, columns)
    stored:  (codes of rows (n, columns)) -> these as they are stored, flat, uint8
    grid:    of which block each scale is; `turned`: a matrix of scales is stored transposed
    whole:   a scale of all blocks; it multiplies (factor), or it divides (divisor)
    at_once: the codes of so many rows are stored together, and are written together
    powers:  scales that are stored as floats are powers of two
    reach:   how far beyond the numbers of the table those may lie whose scale stays. 0, but where the next scale is so
             much larger that all codes of a block would be others: half a step of the last code, which is no further
             than numbers between codes are from theirs
    """

    table: Array
    codes: Callable[[ReadStored, int, int], Array]
    stored: Callable[[Array], Array]
    grid: Grid
    whole: Ref | None = None
    divides: bool = False
    at_once: int = 1
    turned: bool = False
    powers: bool = False
    reach: float = 0.0

    def blocks(self, first: int, last: int) -> tuple[int, int, Array]:
        """(low, high, index): rows first..last have their scales in rows low..high of these, each in low + index[i]."""
        places = np.arange(first, last)
        grid = self.grid
        places = places // grid.rows * grid.shape[0] + places % grid.rows // grid.block[0]
        return int(places[0]), int(places[-1]) + 1, places - places[0]

    def scales(self, read: ReadStored, low: int, high: int) -> Array:
        """Rows low..high of scales as they are stored: (high − low, blocks of a row)."""
        (down, across), ref = self.grid.shape, self.grid.ref
        if not self.turned:
            return np.asarray(read(ref, across, low, high))
        matrix, begin = divmod(low, down)
        own = (matrix * across, (matrix + 1) * across)
        return np.ascontiguousarray(read(ref, down, *own, begin, begin + high - low).T)

    def sizes(self, read: ReadStored, scales: Array) -> tuple[Array, float]:
        """(numerators, divisor) of scales that are stored so: the exact scale is their quotient. Raises MismatchError
        where a number for all blocks is no scale."""
        factor, divisor = self.whole_of(read)
        return numbers(scales, self.grid.ref.spec.dtype) * factor, divisor

    def whole_of(self, read: ReadStored) -> tuple[float, float]:
        """What all scales are multiplied by, and divided by. Raises as `sizes` does."""
        number = 1.0 if self.whole is None else one(read, self.whole)
        return (1.0, number) if self.divides else (number, 1.0)

    def each(self, read: ReadStored, first: int, last: int) -> tuple[Array, float]:
        """The scale of each number of rows first..last, (n, columns), and the divisor: exact, as `sizes` has them."""
        low, high, index = self.blocks(first, last)
        sizes, divisor = self.sizes(read, self.scales(read, low, high))
        return self.spread(sizes, index), divisor

    def rounded(self, read: ReadStored, first: int, last: int) -> Array:
        """The scale of each number of rows first..last, (n, columns), as float64 has it."""
        scales, divisor = self.each(read, first, last)
        return scales / divisor

    def spread(self, values: Array, index: Array) -> Array:
        """What each block has, (blocks down, blocks of a row), for each number of it: (n, columns)."""
        rows, size = values[index], self.grid.block[1]
        return rows if size == 1 else np.repeat(rows, size, axis=1)[:, : self.grid.columns]

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest number of the table."""
        return float(np.nanmin(self.table)), float(np.nanmax(self.table))


def one(read: ReadStored, ref: Ref) -> float:
    """The one number of a tensor. Raises MismatchError where it is no positive number: nothing could be told from the
    codes."""
    number = float(read(ref, 1, 0, 1)[0, 0])
    if not 0 < number < math.inf:
        raise MismatchError(f"{ref.path}: {shown(ref.spec.name)} is {number}, and no scale")
    return number


class Levels:
    """The numbers of a table in their order, and which is nearest.

    values: ascending (m,); −0 is +0, and both are one
    codes:  that of each; of 0 that without a sign
    middles: between neighbours (m − 1,), exact in float64
    evens:   whether the upper of both neighbours is the even code
    """

    def __init__(self, table: Array) -> None:
        order = [code for code in np.argsort(table, kind="stable").tolist() if not math.isnan(table[code])]
        self.values, first = np.unique(table[order], return_index=True)
        self.values = self.values + 0.0  # without −0
        self.codes = np.array(order, np.uint8)[first]
        zero = np.flatnonzero(self.values == 0)
        if len(zero):
            plain = [code for code in order if table[code] == 0 and not np.signbit(table[code])]
            self.codes[zero] = plain[:1]
        self.middles = (self.values[1:] + self.values[:-1]) / 2
        self.evens = self.codes[1:] % 2 == 0
        # By the upper 16 bits of float32 (sign, exponent, 7 bits): middles have 8 bits at most, so each of these holds
        # numbers on one side of every middle only
        words = np.arange(1 << 16, dtype=np.uint32) << 16
        with np.errstate(invalid="ignore"):
            inside = (words | 1).view(np.float32).astype(np.float64)
            inside[np.isnan(inside)] = 0
            self._guess = np.searchsorted(self.middles, inside).astype(np.int16 if len(order) > 127 else np.uint8)

    def guess(self, values: Array) -> Array:
        """The place of the nearest number, float64 (n,): right but for values that are nearly a middle."""
        with np.errstate(over="ignore"):
            found: Array = self._guess[values.astype(np.float32).view(np.uint32) >> 16]
        return found

    def nearest(self, value: Fraction) -> int:
        """The place of the nearest number, of two that with the even code."""
        low, high = 0, len(self.middles)
        while low < high:
            place = (low + high) // 2
            middle = Fraction(self.middles[place].item())
            if value > middle or (value == middle and bool(self.evens[place])):
                low = place + 1
            else:
                high = place
        return low


@functools.cache
def levels_of(table: bytes) -> Levels:
    """Those of a table, by its bytes."""
    return Levels(np.frombuffer(table))
