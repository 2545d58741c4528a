"""Values of single elements in double-double: by themselves where they are few and formulas are rational, else with all
of their rows, whose norms are then known as well."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.codecs.tensors import read_rows
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.ops import DOUBLES
from adaptertool.numerics.rounding import Array

_PART = 1 << 14  # elements whose numbers stay in the cache
_FACTORS = 1 << 17  # that belong to single elements
_SPARSE = 1 / 8  # of a block: where fewer are open, each by itself takes less time
_GAP = 1 << 12  # elements that take less time than to begin anew


def interpolate(before: Any, after: Any, alpha: Any) -> Any:
    """before + α·(after − before), of arrays of any one number system and shape; `after` itself where α is 1."""
    return after if alpha == 1 else before + (after - before) * alpha


def doubled(
    chain: Chain, rows: tuple[int, int], columns: int, where: Array, before: Array, alpha: float
) -> Iterator[tuple[slice, DoubleDouble]]:
    """before + α·(after − before) of elements `where` (n,) of a block, ascending: a slice of `where`, and their values.

    rows: first and last of the block, of `columns` elements each; before: what the base has there, (n,)
    """
    first, last = rows
    if chain.requirements.rational and len(where) < _SPARSE * (last - first) * columns:
        count = max(64, _FACTORS // chain.requirements.width)
        for start in range(0, len(where), count):
            part = slice(start, start + count)
            at = where[part] // columns, where[part] % columns
            base = DoubleDouble.of(before[part].reshape(-1, 1, 1))
            after = chain.pick(DOUBLES, first, last, at, base)
            yield part, interpolate(base, after, Fraction(alpha)).reshape(-1)
        return
    for part, begin, end in _runs(where // columns, columns):
        stored = read_rows(chain.inputs, chain.step.base, first + begin, first + end, columns)
        base = DoubleDouble.of(stored)
        made = base.copy()
        chain.apply(made, first + begin, base, ops=DOUBLES)
        own = where[part] - begin * columns
        if len(own) < stored.size:
            base, made = base.reshape(-1)[own], made.reshape(-1)[own]
        yield part, interpolate(base, made, Fraction(alpha)).reshape(-1)


def _runs(row: Array, columns: int) -> Iterator[tuple[slice, int, int]]:
    """Rows that are looked at together, begin..end, and which of the elements, whose rows ascend, lie in them."""
    window = row // max(1, _PART // max(columns, 1))
    apart = np.diff(row) > max(1, _GAP // max(columns, 1))
    cuts = (np.flatnonzero(apart | (np.diff(window) != 0)) + 1).tolist()
    for start, stop in zip([0, *cuts], [*cuts, len(row)], strict=True):
        yield slice(start, stop), int(row[start]), int(row[stop - 1]) + 1
