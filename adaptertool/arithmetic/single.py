"""The edits made to single elements of a tensor, in any number system."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.region import Places, Region, choose, numbers_of, picked, taken
from adaptertool.codecs.tensors import read_rows
from adaptertool.kinds import NORM, kind_of
from adaptertool.numerics.ops import Ops
from adaptertool.numerics.rounding import Array


def pick(
    chain: Chain,
    ops: Ops,
    rows: tuple[int, int],
    at: Places,
    before: Any,
    norms: Mapping[int, Any] | None = None,
    upto: int | None = None,
) -> Any:
    """The edits (the first `upto` of them) made to n single elements of some rows, first and last, of a tensor: a batch
    (n, 1, 1) in a number system.

    at: rows (from `first` on) and columns, (n,) each; before: their values (n, 1, 1), of the number system
    norms: by the number of the edit, as `Chain.apply` gives them, or (1, 1, 1) that of the only element
    """
    made = before.copy()
    for number, edit in enumerate(chain.step.edits[:upto]):
        chosen = choose(edit, *rows)
        if chosen is None:
            continue
        where, places = chosen.inside(at)
        if not len(where):
            continue
        kind, known, (scale, weight) = kind_of(edit), chain.known(number, edit, chosen.places), numbers_of(ops, edit)
        some = made if len(where) == len(at[0]) else made[where]
        if kind.neighbours:
            line = functools.partial(_line, chain, ops, rows, number, chosen, places)
            factors = {
                role: taken(ops, kind, role, factor, edit, places) if role in kind.by_row else factor.array
                for role, factor in known.items()
            }
            kind.neighbours.pick(ops, some, line, factors, places[0 if edit.transposed else 1], weight)
        else:
            factors = {role: taken(ops, kind, role, factor, edit, places) for role, factor in known.items()}
            if norms and number in norms:
                norm = norms[number]
                factors[NORM] = norm if len(norm.shape) == 3 else picked(kind, NORM, norm, edit, places)
            kind.apply(ops, some, factors, scale, weight)
        if some is not made:
            made[where] = some
    return made


def _line(
    chain: Chain, ops: Ops, rows: tuple[int, int], number: int, region: Region, places: Places, columns: Array
) -> Any:
    """What edit `number` finds in other columns of the weight, (n, c), beside n elements of what it acts on:
    (n·c, 1, 1)."""
    row, column = (np.repeat(place, columns.shape[1]) for place in places)
    turned = chain.step.edits[number].transposed
    at = region.outside((columns.reshape(-1), column) if turned else (row, columns.reshape(-1)))
    base = np.empty((len(row), 1, 1))
    order = np.argsort(at[0], kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(at[0][order])) + 1):  # each row of the base is read once
        one = rows[0] + int(at[0][own[0]])
        base[own, 0, 0] = read_rows(chain.inputs, chain.step.base, one, one + 1, chain.columns)[0, at[1][own]]
    return pick(chain, ops, rows, at, ops.array(base), upto=number)
