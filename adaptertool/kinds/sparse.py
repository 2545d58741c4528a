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

    def in_order(read: ReadRows) -> tuple[Any, Array]:
        along, across, values = elements(read)
        at = along * shape[1] + across
        if not (at[1:] > at[:-1]).all():
            order = np.argsort(at)
            at, values = at[order], values[order]
        return at, values

    delta = sparse_delta(sources, shape, remembered(in_order))
    return Part(DIFFERENCE.name, {DELTA: delta}, scale)


def sparse_delta(
    sources: Iterable[Ref], shape: Shape, few: Callable[[ReadRows], tuple[Any, Array]], *, plain: bool = False
) -> Ref:
    """D (out, in) of which `few` has the elements that are not 0, as spec.tensors.Making has it, and `plain`."""
    out, wide = shape

    def rows(read: ReadRows, first: int, last: int) -> Array:
        at, values = few(read)
        begin, end = np.searchsorted(at, (first * wide, last * wide))
        found = np.zeros((last - first, wide))
        found.reshape(-1)[at[begin:end] - first * wide] = values[begin:end]
        return found

    def columns(read: ReadRows, first: int, last: int) -> Array:
        at, values = few(read)
        along, across = np.divmod(at, wide)
        some = (first <= across) & (across < last)
        found = np.zeros((last - first, out))
        found[across[some] - first, along[some]] = values[some]
        return found

    return made(sources, shape, rows, columns, plain=plain, few=few)
