"""The smallest scale, of those that its dtype has, by which a table holds numbers."""

from __future__ import annotations

import numpy as np

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.codecs.quantised.lattice import Lattice
from adaptertool.codecs.quantised.tables import TABLES
from adaptertool.numerics.rounding import Array


class Scales:
    """The positive numbers that the scales of a lattice may be, in their order: each has a place, an integer.

    Of floats the bits are the places; where all are powers of two, their exponents.
    """

    def __init__(self, lattice: Lattice, factor: float) -> None:
        """factor: of all blocks (Lattice.sizes)"""
        dtype = lattice.grid.ref.spec.dtype
        self._dtype, self._factor = dtype, factor
        self._powers = lattice.powers and dtype in BY_DTYPE
        self._table = TABLES.get(dtype)
        if self._table is not None:
            count = int(np.argmax(np.isnan(self._table))) if np.isnan(self._table).any() else len(self._table)
            self._numbers = self._table[:count]
            self.most = count - 1
        elif self._powers:
            self.most = int(np.frexp(BY_DTYPE[dtype].largest)[1]) - 1
        else:
            largest = np.array([BY_DTYPE[dtype].largest])
            self.most = int(BY_DTYPE[dtype].words(rounded(largest, dtype))[0])
        below, above = lattice.ends
        self._below, self._above = -below, above

    def numbers(self, places: Array) -> Array:
        """The scales at these places, times the factor; infinite beyond the last."""
        inside = np.minimum(places, self.most)
        if self._powers:
            found = np.ldexp(1.0, inside)
        elif self._table is not None:
            found = self._numbers[np.maximum(inside, 0)]
        else:
            found = doubles(
                np.maximum(inside, 0).astype(BY_DTYPE[self._dtype].word).view(BY_DTYPE[self._dtype].held), self._dtype
            )
        scaled: Array = np.where(places > self.most, np.inf, found * self._factor)
        return scaled

    def stored(self, places: Array) -> Array:
        """As they are stored. All are at most `most`."""
        if self._powers:
            return rounded(np.ldexp(1.0, places), self._dtype)
        if self._table is not None:
            return places.astype(np.uint8)
        return places.astype(BY_DTYPE[self._dtype].word).view(BY_DTYPE[self._dtype].held)

    def least(self, above: Array, below: Array) -> Array:
        """The places of the smallest scales that hold numbers from −below to above, (n,) each: `most` + 1 where none
        does."""
        with np.errstate(all="ignore"):
            wanted = np.maximum(above / self._above, below / self._below) / self._factor
            places = self._near(wanted)
            for _ in range(3):  # the quotient is rounded, and so is its place
                lower = places - 1
                places = np.where(self._hold(lower, above, below) & (places > self._first), lower, places)
            for _ in range(3):
                places = np.where(self._hold(places, above, below), places, places + 1)
        found: Array = np.minimum(places, self.most + 1)
        return found

    @property
    def _first(self) -> int:
        """The place of the smallest."""
        return BY_DTYPE[self._dtype].lowest - BY_DTYPE[self._dtype].digits + 1 if self._powers else 0

    def _hold(self, places: Array, above: Array, below: Array) -> Array:
        sizes = self.numbers(places)
        held: Array = (sizes * self._above >= above) & (sizes * self._below >= below)
        return held

    def _near(self, wanted: Array) -> Array:
        if self._powers:
            return np.maximum(np.frexp(wanted)[1].astype(np.int64), self._first)
        if self._table is not None:
            return np.searchsorted(self._numbers, wanted).astype(np.int64)
        return BY_DTYPE[self._dtype].words(rounded(wanted, self._dtype)).astype(np.int64)
