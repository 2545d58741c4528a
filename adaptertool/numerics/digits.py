"""Arithmetic in long numbers (multiple precision), on arrays: a number is Σ digits·2^(20·place) (numerics.places), with
a bound of its error.

Sums and products are exact, whatever the numbers have cancelled to, and so are quotients and roots that come out even;
of others there are some 300 bits, with the error. So this decides what double-double leaves open by the million: the
middle of two stored values, and what lies next to it.

Numbers of one array share their places, of which there are few: what lies below is dropped, and counts as an error.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.numerics.places import (
    LARGEST_DIGIT,
    LARGEST_SUM,
    LEAST_ERROR,
    LOWEST_PLACE,
    MOST_PLACES,
    Places,
    bound,
    carried,
    products,
    split,
    split_number,
    squares,
    times_power,
)

Array = Any  # of float64

WIDER = 1 + 2.0**-20  # for the roundings of a bound


class Digits:
    """An array of long numbers: each is within `error` of Σ digits·2^(20·place).

    What an index or `T` returns is a view: to change it in place changes what it is of.
    """

    __slots__ = ("back", "error", "places", "reach", "shape")
    __array_ufunc__ = None  # numpy leaves mixed operations to us

    def __init__(
        self, shape: tuple[int, ...], places: Places, reach: float = LARGEST_DIGIT, error: Array | None = None
    ) -> None:
        """places: digits by their place, float64 of that shape; those that are not there are 0
        reach:  none of the digits is larger in magnitude
        error:  float64 of that shape, none between 0 and LEAST_ERROR, infinite where nothing is known; None: all exact
        """
        self.shape, self.places, self.reach, self.error = shape, places, reach, error
        self.back: Callable[[Digits], object] | None = None  # writes to what it is a view of

    @classmethod
    def of(cls, values: Array) -> Digits:
        """Float64 values, of any shape: exactly, if they are not beyond 2^1000 or too far apart."""
        places, error = split(values)
        return cls(np.shape(values), places, error=error)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def T(self) -> Digits:  # as numpy has it
        found = self._each(lambda array: array.T, self.shape[::-1])
        found.back = lambda new: self._put(new.T)
        return found

    def copy(self) -> Digits:
        return Digits(self.shape, dict(self.places), self.reach, self.error)

    def with_error(self, error: Array | None) -> Digits:
        """The same digits with another error."""
        return Digits(self.shape, self.places, self.reach, error)

    def reshape(self, *shape: int) -> Digits:
        whole = np.broadcast_to(0.0, self.shape).reshape(*shape).shape
        return self._each(lambda array: array.reshape(whole), whole)

    def swapaxes(self, one: int, other: int) -> Digits:
        shape = np.broadcast_to(0.0, self.shape).swapaxes(one, other).shape
        return self._each(lambda array: array.swapaxes(one, other), shape)

    def __getitem__(self, key: Any) -> Digits:
        found = self._each(lambda array: array[key], np.broadcast_to(0.0, self.shape)[key].shape)
        found.back = lambda new: self.__setitem__(key, new)
        return found

    def __setitem__(self, key: Any, other: Digits) -> None:
        if other.shape == self.shape and _is_all(key):
            self._put(other)
            return
        for place in self.places.keys() | other.places.keys():
            whole = self.places.get(place)
            whole = np.zeros(self.shape) if whole is None else whole.copy()
            whole[key] = other.places.get(place, 0.0)
            self.places[place] = whole
        if self.error is not None or other.error is not None:
            error = np.zeros(self.shape) if self.error is None else self.error.copy()
            error[key] = 0.0 if other.error is None else other.error
            self.error = error
        self.reach = max(self.reach, other.reach)
        self._put(self)

    def __add__(self, other: Digits) -> Digits:
        return self.plus(other, 1.0)._cut()

    def __sub__(self, other: Digits) -> Digits:
        return self.plus(other, -1.0)._cut()

    def __mul__(self, other: Fraction | Digits) -> Digits:
        """The product with a dyadic rational, or element by element."""
        if isinstance(other, Fraction):
            other = Digits((), split_number(other))
        return _product(self, other, np.multiply, np.broadcast_shapes(self.shape, other.shape), 1)

    def __matmul__(self, other: Digits) -> Digits:
        """The product of matrices, or of batches (n, a, r) and (n, r, b)."""
        shape = (*np.broadcast_shapes(self.shape[:-2], other.shape[:-2]), self.shape[-2], other.shape[-1])
        single = self.ndim == 3 and self.shape[1] == other.shape[2] == 1
        return _product(self, other, _dot if single else np.matmul, shape, self.shape[-1])

    def __iadd__(self, other: Digits) -> Digits:
        return self._put(self + other)

    def __isub__(self, other: Digits) -> Digits:
        return self._put(self - other)

    def __imul__(self, other: Fraction | Digits) -> Digits:
        return self._put(self * other)

    def sum(self, axis: int) -> Digits:
        """The sums of the rows of a matrix, for axis 1."""
        assert axis == 1 and self.ndim == 2
        return (self @ Digits.of(np.ones((self.shape[1], 1)))).reshape(self.shape[0])

    def squares(self) -> Digits:
        """The sums of the squares of the rows of a matrix."""
        self.carry()
        found = Digits((self.shape[0],), {})
        step = max(1, int(LARGEST_SUM / 2 / LARGEST_DIGIT**2) // max(len(self.places), 1))
        for first in range(0, self.shape[1], step):
            some = squares(self.places, slice(first, first + step))
            found = found + Digits(found.shape, some, LARGEST_SUM / 2)
            found.carry()
        if self.error is not None:
            with np.errstate(all="ignore"):
                given = (2 * self.size() * self.error).sum(1) * WIDER
                found.error = bound(given if found.error is None else (given + found.error) * WIDER)
        return found

    @np.errstate(all="ignore")
    def near(self) -> Array:
        """The numbers, to about 50 bits relatively; infinite, or none, where float64 has no such numbers."""
        self.carry()
        total, part = np.zeros(self.shape), np.empty(self.shape)
        for place in sorted(self.places, reverse=True):
            total += times_power(self.places[place], place, part)
        return total

    @np.errstate(all="ignore")
    def size(self) -> Array:
        """An upper bound of the magnitudes, errors included."""
        near = bound(abs(self.near()) * WIDER)
        if min(self.places, default=0) < LOWEST_PLACE:  # float64 may take it for 0
            near = np.maximum(near, LEAST_ERROR)
        return near if self.error is None else near + self.error

    def _each(self, change: Callable[[Array], Array], shape: tuple[int, ...]) -> Digits:
        places = {place: change(digit) for place, digit in self.places.items()}
        return Digits(shape, places, self.reach, None if self.error is None else change(self.error))

    def _put(self, new: Digits) -> Digits:
        """Take what `new` has, also where this is a view of."""
        self.places, self.reach, self.error = dict(new.places), new.reach, new.error
        if self.back is not None:
            self.back(self)
        return self

    @np.errstate(all="ignore")
    def plus(self, other: Digits, sign: float) -> Digits:
        """self ± other, with all places: sums of what has too many are cut as operators make them."""
        shape = np.broadcast_shapes(self.shape, other.shape)
        for number in (self, other):
            if self.reach + other.reach > LARGEST_SUM:
                number.carry()
        add: Any = np.add if sign > 0 else np.subtract
        places: Places = {}
        for place in self.places.keys() | other.places.keys():
            own, beside = self.places.get(place), other.places.get(place)
            made: Any = own if beside is None else sign * beside if own is None else add(own, beside)
            places[place] = made if np.shape(made) == shape else np.broadcast_to(made, shape)
        errors = [error for error in (self.error, other.error) if error is not None]
        error = np.broadcast_to(sum(errors) * WIDER, shape) if errors else None
        return Digits(shape, places, self.reach + other.reach, error)

    def carry(self) -> None:
        """Make all digits small, and drop places that have none."""
        if self.reach > LARGEST_DIGIT:
            self.places, self.reach = carried(self.places, self.shape), LARGEST_DIGIT

    def _cut(self) -> Digits:
        """Drop the lowest places, where there are too many."""
        if len(self.places) > MOST_PLACES:
            self.carry()
            for place in sorted(self.places, reverse=True)[MOST_PLACES:]:
                with np.errstate(all="ignore"):
                    lost = abs(times_power(self.places.pop(place), place, np.empty(self.shape))) + LEAST_ERROR  # not 0
                self.error = lost if self.error is None else (self.error + lost) * WIDER
        return self


def _is_all(key: Any) -> bool:
    """Whether an index takes all of an array: of rows, columns, or both."""
    return all(
        one is Ellipsis or (isinstance(one, slice) and one == slice(None))
        for one in (key if isinstance(key, tuple) else (key,))
    )


def _dot(left: Array, right: Array) -> Array:
    """Batches (n, 1, r) @ (n, r, 1)."""
    return (left.swapaxes(1, 2) * right).sum(1, keepdims=True)


def _product(
    left: Digits, right: Digits, times: Callable[[Array, Array], Array], shape: tuple[int, ...], length: int
) -> Digits:
    """The product by `times`, which sums `length` products."""
    for number in (left, right):
        number.carry()
    count, limit = length * min(len(left.places), len(right.places)), LARGEST_SUM / LARGEST_DIGIT**2
    if count > limit and length > 1:
        half = length // 2
        halves = ((left[..., part], right[..., part, :]) for part in (slice(0, half), slice(half, length)))
        first, second = (_product(*part, times, shape, (length + 1) // 2) for part in halves)
        return first + second
    errors = []
    with np.errstate(all="ignore"):
        if left.error is not None:
            errors.append(times(left.error, right.size()))
        if right.error is not None:
            errors.append(times(left.size(), right.error))
        error = bound(sum(errors) * (WIDER * (1 + length * 2.0**-50))) if errors else None
    return Digits(shape, products(left.places, right.places, times), max(count, 1) * LARGEST_DIGIT**2, error)._cut()
