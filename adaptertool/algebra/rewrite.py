"""The tensors of a file that a format has drafted, made of those of another (spec.portable)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from adaptertool.algebra.factors import made
from adaptertool.codecs import COMPUTED
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.codecs.tensors import read_tensor, require_finite
from adaptertool.engine.produce import Job, Made
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.numerics.scaled import scaled
from adaptertool.spec.portable import Draft, Drafted

_BLOCK = 1 << 21  # elements made at once


class Rewritten(NamedTuple):
    """What became of a tensor, or of some of its rows."""

    name: str
    rounded: int = 0  # elements that are not exactly what they are to be


def jobs(draft: Draft, inputs: Inputs) -> Iterator[Job[Rewritten]]:
    """The jobs that make the tensors, in the order of the draft."""
    for one in draft.tensors:
        if one.copied:
            yield functools.partial(_copied, one, inputs)
            continue
        rows = _rows_of(one)
        step = max(1, _BLOCK * rows // max(one.source.spec.numel, 1))
        for first in range(0, rows, step):
            yield functools.partial(_computed, one, first, min(rows, first + step), inputs)


def _copied(one: Drafted, inputs: Inputs) -> tuple[list[Made], Rewritten]:
    if one.spec.dtype in COMPUTED:
        require_finite(inputs, one.source)
    return [Made(one.spec, one.source)], Rewritten(one.spec.name)


def _computed(one: Drafted, first: int, last: int, inputs: Inputs) -> tuple[list[Made], Rewritten]:
    """Rows first..last of the source."""
    width = one.source.spec.numel // _rows_of(one)
    values = read_tensor(inputs, one.source, first * width, last * width)
    if not np.isfinite(values).all():
        raise NonFiniteError(
            f"{one.source.path}: {shown(one.source.spec.name)} holds NaN or infinity; the adapter is damaged, or its "
            "training diverged"
        )
    values, lost = scaled(values, one.times, rounded_again=one.spec.dtype != "F64")
    stored = rounded(values, one.spec.dtype)
    inexact = int(np.count_nonzero(lost | (doubles(stored, one.spec.dtype) != values)))
    part = made(one.spec, stored, f"{one.source.path}: {shown(one.source.spec.name)} times {one.times:g}")
    return [part], Rewritten(one.spec.name, inexact)


def _rows_of(one: Drafted) -> int:
    return max(one.source.shape[0], 1) if one.source.shape else 1
