"""What long numbers (numerics.digits) are, as rationals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.numerics.digits import Digits

exact = np.vectorize(lambda number: Fraction(float(number)), otypes=[object])  # of float64


def values_of(number: Digits) -> Any:
    """An array of Fraction, without the error."""
    total = np.full(number.shape, Fraction(0), object)
    for place, digits in number.places.items():
        total = total + exact(np.broadcast_to(digits, number.shape)) * Fraction(2) ** (20 * place)
    return total


def errors_of(number: Digits) -> Any:
    """An array of Fraction."""
    return exact(np.zeros(number.shape) if number.error is None else number.error)
