"""Values of single elements of a block, in float64, double-double or long numbers: by themselves where they are few,
else with all of their rows, whose norms are then known as well."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.single import pick
from adaptertool.arithmetic.tiling import needs_columns
from adaptertool.codecs.tensors import read_rows
from adaptertool.numerics.ops import BLOCKS, DOUBLES, FLOATS, Ops
from adaptertool.numerics.rounding import Array

_PART, _ROWS = 1 << 16, 8  # elements that are made at once, or rows where that is more: their numbers stay near
_FACTORS = 1 << 17  # that belong to single elements
_SPARSE = 2.0  # factors of single elements for each element of the block: where there are less, that takes less time
_GAP = 1 << 12  # elements that take less time than to begin anew


@functools.lru_cache(maxsize=2)
def every(count: int) -> Array:
    """The indices 0..count: those of all elements of a block, of which a tensor has two sizes. Not to be written to."""
    found = np.arange(count, dtype=np.int32)
    found.flags.writeable = False
    return found


def interpolate(before: Any, after: Any, alpha: Any) -> Any:
    """before + α·(after − before), of arrays of any one number system and shape; `after` itself where α is 1."""
    return after if alpha == 1 else before + (after - before) * alpha


def values_of(
    ops: Ops,
    chain: Chain,
    rows: tuple[int, int],
    where: Array,
    before: Array,
    alpha: float,
    norms: Mapping[int, Any] | None = None,
) -> Iterator[tuple[slice, Any]]:
    """before + α·(after − before) of elements `where` (n,) of a block, ascending: slices of `where`, one after the
    other, and their values, flat.

    ops: BLOCKS, DOUBLES or DIGITS; rows: first and last of the block; before: what the base has there, (n,)
    norms: those of the block in the number system, where they are known: by the number of the edit
    """
    first, last = rows
    weight, columns = Fraction(alpha) if ops.exact else alpha, chain.columns
    whole = len(where) == (last - first) * columns
    few = not whole and len(where) * chain.requirements.width < _SPARSE * (last - first) * columns
    if few and (chain.requirements.rational or (norms is not None and not chain.requirements.whole_rows)):
        count, single = max(8, min(_PART, _FACTORS // chain.requirements.width)), FLOATS if ops is BLOCKS else ops
        for start in range(0, len(where), count):
            part = slice(start, start + count)
            at, base = (where[part] // columns, where[part] % columns), chain.taken(ops, before[part].reshape(-1, 1, 1))
            after = pick(chain, single, rows, at, base, norms=norms)
            yield part, interpolate(base, after, weight).reshape(-1)
        return
    if needs_columns(chain.step.edits):
        parts = iter([(slice(None), 0, last - first)])
    else:
        parts = _windows(len(where), columns) if whole else _runs(where // columns, columns)
    for part, begin, end in parts:
        if whole:
            stored = before[part].reshape(-1, columns)
        else:
            stored = read_rows(chain.inputs, chain.step.base, first + begin, first + end, columns)
        base = chain.taken(ops, stored)
        in_place = ops is DOUBLES and alpha == 1 and not chain.requirements.before  # what is made of it replaces it
        made = base if in_place else base.copy()
        chain.apply(made, first + begin, base, ops=ops)
        base, made = base.reshape(-1), made.reshape(-1)
        if not whole:
            own = where[part] - begin * columns
            base, made = base[own], made[own]
        yield part, interpolate(base, made, weight)


def _windows(count: int, columns: int) -> Iterator[tuple[slice, int, int]]:
    """As `_runs`, of all elements of a block."""
    step = _step(columns)
    for begin in range(0, count // columns, step):
        end = min(count // columns, begin + step)
        yield slice(begin * columns, end * columns), begin, end


def _runs(row: Array, columns: int) -> Iterator[tuple[slice, int, int]]:
    """Rows that are looked at together, begin..end, and which of the elements, whose rows ascend, lie in them."""
    window = row // _step(columns)
    apart = np.diff(row) > max(1, _GAP // max(columns, 1))
    cuts = (np.flatnonzero(apart | (np.diff(window) != 0)) + 1).tolist()
    for start, stop in zip([0, *cuts], [*cuts, len(row)], strict=True):
        yield slice(start, stop), int(row[start]), int(row[stop - 1]) + 1


def _step(columns: int) -> int:
    """How many rows are made at once."""
    return max(_ROWS, _PART // max(columns, 1))
