"""Numbers of many bits (multiple precision) as digits, or limbs, by their place, Σ digits·2^(20·place): what
numerics.digits is made of. Dictionaries of arrays.

A digit is an integer in a float64, at most 2^19 in magnitude; while carries wait it may have up to 2^52. So products of
two, and sums of up to 2^14 of those, are exact, in any order: BLAS may make them.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

Array = Any  # of float64, of one shape
Places = dict[int, Array]  # what is not there is 0

BITS = 20  # of a digit
LARGEST_DIGIT, LARGEST_SUM = 2.0 ** (BITS - 1), 2.0**52  # in magnitude; the sum while carries wait
MOST_PLACES = 64  # of one array
LOWEST_PLACE = -51  # that float64 holds; the highest is 51
LEAST_ERROR = 2.0**-400  # a bound of an error is 0 or no less, so that products of bounds do not vanish
_BEYOND = 2.0**1000


def split(values: Array) -> tuple[Places, Array | None]:
    """The digits of float64 values, and a bound of what is left of them: infinite where they are beyond 2^1000 or no
    numbers; None where nothing is."""
    left = np.array(values, np.float64)
    beyond = ~(abs(left) < _BEYOND)
    left[beyond] = 0.0
    place = -((BITS - 1 - int(np.frexp(abs(left).max(initial=0.0))[1])) // BITS)
    lowest, places = max(place - MOST_PLACES, LOWEST_PLACE), {}
    while place >= lowest and left.any():
        digit = np.rint(left * 2.0 ** (-BITS * place))
        if digit.any():
            places[place] = digit
            left -= digit * 2.0 ** (BITS * place)
        place -= 1
    if not left.any() and not beyond.any():
        return places, None
    return places, np.where(beyond, np.inf, bound(abs(left)))


def bound(sizes: Array) -> Array:
    """A bound of an error of these sizes: what is not 0 is at least LEAST_ERROR, and what is NaN infinite."""
    sizes = np.where(np.isnan(sizes), np.inf, sizes)
    return np.where(sizes == 0, 0.0, np.maximum(sizes, LEAST_ERROR))


def split_number(number: Fraction) -> Places:
    """The digits of a dyadic rational, of shape ()."""
    power = number.denominator.bit_length() - 1
    assert number.denominator == 1 << power
    left, place, places = number.numerator << (-power % BITS), -(power + -power % BITS) // BITS, {}
    while left:
        digit = (left + (1 << BITS - 1)) % (1 << BITS) - (1 << BITS - 1)
        left = (left - digit) >> BITS
        if digit:
            places[place] = np.float64(digit)
        place += 1
    return places


def carried(waiting: Places, shape: tuple[int, ...]) -> Places:
    """The same numbers with small digits, and without places that have none."""
    places, carries, part, some = {}, np.zeros(shape), np.empty(shape), False
    place, highest = min(waiting, default=0), max(waiting, default=-1)
    while place <= highest or some:
        if place in waiting or some:
            own = waiting.get(place)
            digit = np.add(carries, 0.0 if own is None else own, out=np.empty(shape))
            np.rint(np.multiply(digit, 2.0**-BITS, out=carries), out=carries)
            some = bool(carries.any())
            if some:
                digit -= np.multiply(carries, 2.0**BITS, out=part)
            if digit.any():
                places[place] = digit
        place += 1
    return places


def products(left: Places, right: Places, times: Callable[[Array, Array], Array]) -> Places:
    """Each of one with each of the other, by `times`; carries wait."""
    places: Places = {}
    if times is np.matmul and all(digit.ndim == 2 for digit in (*left.values(), *right.values())):
        for total in {place + other for place in left for other in right}:  # one product of longer rows for each
            pairs = [(digit, right[total - place]) for place, digit in left.items() if total - place in right]
            rows, columns = (
                np.concatenate(some, axis) for some, axis in zip(zip(*pairs, strict=True), (1, 0), strict=True)
            )
            places[total] = rows @ columns
        return places
    for place, digit in left.items():
        for other, beside in right.items():
            made = times(digit, beside)
            own = places.get(place + other)
            places[place + other] = made if own is None else own + made
    return places


def squares(places: Places, columns: slice) -> Places:
    """The sums of the squares of the rows of a matrix, of some columns; carries wait."""
    found: Places = {}
    ordered = sorted(places.items())
    for number, (place, digit) in enumerate(ordered):
        for other, beside in ordered[number:]:
            made = np.einsum("ij,ij->i", digit[:, columns], beside[:, columns])
            found[place + other] = found.get(place + other, 0.0) + (made if other == place else 2 * made)
    return found


def times_power(digits: Array, place: int, out: Array) -> Array:
    """digits·2^(20·place), in `out` where that is a product of two float64."""
    if abs(place) <= -LOWEST_PLACE:
        return np.multiply(digits, 2.0 ** (BITS * place), out=out)
    with np.errstate(all="ignore"):
        return np.ldexp(digits, BITS * place)
