"""What is said of a block that holds NaN or infinity: none leaves the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.tensors import read_tensor
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.kinds import kind_of
from adaptertool.kinds.full import TUNED
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Step


def fail_not_finite(inputs: Inputs, step: Step, start: int, stored: Array, result: Array) -> NoReturn:
    """Raise NonFiniteError for the first number of a block that is none, or too large, with where it comes from.

    start: elements of the tensor before the block; stored, result: the block as the base has it, and what was made
    """
    base, dtype = step.base, step.spec.dtype
    numbers = doubles(result, dtype)
    where = int(np.flatnonzero(~np.isfinite(numbers))[0])
    element, place = start + where, shown(base.spec.name)
    if base.spec.shape:
        place += f", element {_index(element, base.spec.shape)}"
    if not np.isfinite(before := doubles(stored[where : where + 1], base.spec.dtype)[0]):
        raise NonFiniteError(f"{base.path}: {place} holds {before}; such a tensor cannot be edited")
    for edit in step.edits:
        if kind_of(edit).replaces and edit.view is None:
            ref = edit.factors[TUNED]
            if not np.isfinite(number := read_tensor(inputs, ref, element, element + 1)[0]):
                raise NonFiniteError(f"{ref.path}: {place} holds {number}; it cannot be interpolated")
    if np.isnan(numbers[where]):
        raise NonFiniteError(f"{base.path}: {place}: the result is not a number (DoRA of a weight of norm 0?)")
    raise NonFiniteError(
        f"{base.path}: {place}: the result is beyond the range of {dtype} (largest: {BY_DTYPE[dtype].largest:g})"
    )


def _index(element: int, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(position) for position in np.unravel_index(element, shape))
