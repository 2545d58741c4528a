"""Roots, norms and exponentials to more bits than float64 has, by integers, so that they are the same on every machine.

For what is made once for each row of a factor, or each softmax: some microseconds for each number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from adaptertool.numerics.error_bound import Array
from adaptertool.numerics.error_free import two_product

_BITS = 320  # of fixed-point numbers
_HALVINGS = 24  # of an exponent before its series
_LEAST = -200  # e to this is below 2^-288


def split(number: Fraction) -> tuple[float, float]:
    """Two float64, high + low: within 2^-106 of the number, relatively, where neither over- nor underflows; infinity
    and 0 beyond the range."""
    try:
        high = float(number)
    except OverflowError:
        return (math.inf if number > 0 else -math.inf), 0.0
    return high, float(number - Fraction(high))


def root(number: Fraction) -> Fraction:
    """√number for number ≥ 0, within 2^-120, relatively."""
    if number == 0:
        return Fraction(0)
    # So that number·2^shift, with an even shift, has at least 240 bits before the point
    shift = 256 + number.denominator.bit_length() - number.numerator.bit_length()
    shift += shift % 2
    whole = (number.numerator << shift) // number.denominator if shift >= 0 else number // (1 << -shift)
    own = Fraction(math.isqrt(whole))
    return own / (1 << shift // 2) if shift >= 0 else own * (1 << -shift // 2)


def squares(rows: Array) -> Sequence[Fraction]:
    """The sum of squares of each row of a float64 matrix, within 2^-104, relatively; 0 for what is not finite."""
    found = []
    for row in rows:
        largest = float(abs(row).max()) if row.size else 0.0
        if not 0 < largest < math.inf:
            found.append(Fraction(0))
            continue
        power = math.frexp(largest)[1]
        scaled = np.ldexp(row, -power)
        high, low = two_product(scaled, scaled)
        terms = [*high.tolist(), *low[low != 0].tolist()]  # none of float32
        total = math.fsum(terms)
        more = math.fsum([*terms, -total])
        found.append((Fraction(total) + Fraction(more)) * Fraction(2) ** (2 * power))
    return found


def exponential(number: Fraction) -> Fraction:
    """e^number for number ≤ 0, within 2^-280, absolutely.

    (e^(number/2^k))^(2^k), by the series; each of k squarings doubles an error and adds a unit of 2^-320.
    """
    if number < _LEAST:
        return Fraction(0)
    one = 1 << _BITS
    exponent = (number.numerator << _BITS) // (number.denominator << _HALVINGS)
    term = total = one
    count = 0
    while term not in (0, -1):  # a floor never reaches 0 from below
        count += 1
        term = ((term * exponent) >> _BITS) // count
        total += term
    for _ in range(_HALVINGS):
        total = (total * total) >> _BITS
    return Fraction(total, one)


def softmax(numbers: Sequence[float]) -> Sequence[Fraction]:
    """e^x / Σ e^x for each of some finite numbers, within 2^-270, absolutely."""
    exact = [Fraction(number) for number in numbers]
    top = max(exact)
    powers = [exponential(number - top) for number in exact]
    total = sum(powers, Fraction(0))
    return [power / total for power in powers]
