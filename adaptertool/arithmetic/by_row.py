"""How far the norms of each row are off in float64: where they are known so well, elements that need more than float64
need no more of their rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adaptertool.arithmetic.chain import UNIT, Chain
from adaptertool.kinds import NORM, kind_of
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Bound, Factor, FactorByRow
from adaptertool.numerics.rounding import Array

_WIDER = 1 + 2.0**-20  # more than the roundings of an error


def norms_within(
    chain: Chain, size: Bound, rows: tuple[int, int], norms: Mapping[int, Array]
) -> dict[int, DoubleDouble] | None:
    """The norms that rows first..last were made with in float64, (n, 1) as `Chain.apply` gives them, each with its
    error, by the number of the edit. size: of what the base has.

    None where an edit acts on some of the rows alone, or has no bound by row.
    """
    found, places = {}, slice(*rows)
    size = Bound(size.largest, size.error, relative=size.relative)
    for number, edit in enumerate(chain.step.edits):
        kind = kind_of(edit)
        if edit.view is not None or edit.transposed or kind.bound_by_row is None:
            return None
        factors = {
            role: FactorByRow(factor.array, factor.size) if role in kind.by_row else factor
            for role, factor in (chain.shorter(number, edit, places) or chain.known(number, edit, places)).items()
        }
        if number in norms:
            assert kind.norms is not None and kind.norms.error is not None
            factors[NORM] = Factor(norms[number])
            with np.errstate(all="ignore"):  # what is no number has no bound, and is known as such
                off = norms[number] * kind.norms.error(size, factors, edit.scale, chain.columns) * _WIDER
            found[number] = DoubleDouble(np.stack([norms[number], np.zeros_like(off), off]))
        size = kind.bound_by_row(size, factors, edit.scale, edit.weight, UNIT, chain.columns)
    return found
