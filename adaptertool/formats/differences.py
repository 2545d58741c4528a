"""Tensors that take the place of the base's, as what is added to those: for formats that know differences alone."""

from __future__ import annotations

import dataclasses

import numpy as np

from adaptertool.codecs import COMPUTED
from adaptertool.formats.saving import dtype_of
from adaptertool.kinds import kind_of
from adaptertool.kinds.difference import DELTA, DIFFERENCE
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.made import made
from adaptertool.numerics.error_bound import Array
from adaptertool.numerics.error_free import two_sum
from adaptertool.spec.adapter import Module
from adaptertool.spec.portable import Portable
from adaptertool.spec.tensors import ReadRows, Ref


def as_differences(portable: Portable) -> Portable:
    """The changes with T − W in place of each saved tensor T of which the base's W is known."""
    changes = tuple(_added(portable, change) for change in portable.changes)
    return dataclasses.replace(portable, changes=changes)


def _added(portable: Portable, change: Module) -> Module:
    stored = portable.stored.get(change.target)
    if not kind_of(change).replaces or change.rows is not None or stored is None or stored.spec.dtype not in COMPUTED:
        return change
    layer, _, parameter = change.target.rpartition(".")
    name = layer if parameter in ("weight", "bias") else change.name
    factors = {DELTA: _difference(change.factors[TUNED], stored)}
    return change._replace(name=name, kind=DIFFERENCE.name, factors=factors, scale=1.0)


def dtype_of_difference(ref: Ref) -> str | None:
    """What such a difference is stored as: F32 holds nearly all of those of 16 bits. None for any other tensor."""
    between = len({stored.path for stored in ref.stored}) > 1
    return "F32" if between and dtype_of(ref) in ("F16", "BF16") else None


def _difference(tuned: Ref, stored: Ref) -> Ref:
    """T − W. What float64 does not hold of it is rounded to odd, so that rounding it once more is rounding it once."""

    def rows(read: ReadRows, first: int, last: int) -> Array:
        found, rest = two_sum(read(tuned, first, last), -read(stored, first, last))
        bits = found.view(np.int64)
        inward = bits - ((rest != 0) & (np.signbit(rest) != np.signbit(found)))
        odd: Array = np.where(rest != 0, inward | 1, bits).view(np.float64)
        return odd

    return made([*tuned.stored, *stored.stored], tuned.shape, rows)
