"""A tensor D of the weight's own shape with few elements that are not zero, as a factor of the kind difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from adaptertool.kinds.difference import DELTA, DIFFERENCE
from adaptertool.kinds.kind import Part, Shape
from adaptertool.kinds.made import made, remembered
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

# (how to read) -> the rows and the columns of the elements, integers (n,), each pair once, and what they are, float64
Elements = Callable[[ReadRows], tuple[Any, Any, Array]]


def sparse(sources: Iterable[Ref], shape: Shape, elements: Elements, scale: float) -> Part:
    """The change scale·D, D (out, in) as `shape` says."""

    elements = remembered(elements)

    def dense(along: Any, across: Any, values: Array, first: int, last: int, width: int) -> Array:
        some = (first <= along) & (along < last)
        found = np.zeros((last - first, width))
        found[along[some] - first, across[some]] = values[some]
        return found

    def rows(read: ReadRows, first: int, last: int) -> Array:
        along, across, values = elements(read)
        return dense(along, across, values, first, last, shape[1])

    def columns(read: ReadRows, first: int, last: int) -> Array:
        along, across, values = elements(read)
        return dense(across, along, values, first, last, shape[0])

    return Part(DIFFERENCE.name, {DELTA: made(sources, shape, rows, columns)}, scale)
