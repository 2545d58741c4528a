"""Whether the numbers of a wrong tensor are those of another place: turned, of other rows, or of another tensor."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from adaptertool.errors import shown
from adaptertool.numerics.rounding import Array, doubles
from adaptertool.spec import Ref
from adaptertool.tensors import read_rows
from adaptertool.verdict.judge import Subject
from adaptertool.verdict.sample import Sample

_PROBES = 4  # rows that are looked for
_WIDTH = 8  # elements that tell one row from another
_AT_ONCE = 1 << 18  # elements that are searched
_NEAR, _NEARER = 0.3, 0.4  # distance to what it may be: relative to its length, and to the distance from where it is


def is_turned(subject: Subject, samples: Sequence[Sample]) -> bool:
    """Whether a matrix is stored transposed: its columns are the rows that should be there."""
    shape = subject.candidate.spec.shape
    if len(shape) != 2 or shape[::-1] != subject.step.spec.shape:
        return False
    width = subject.step.spec.shape[1]
    for row in _bad_rows(samples, width):
        column = dataclasses.replace(subject.candidate, columns=range(row, row + 1))
        found = read_rows(subject.inputs, column, 0, shape[0], shape[1])[:, 0]
        right = _exact_row(subject, samples, row, width)
        if np.linalg.norm(found - right) > 0.02 * np.linalg.norm(right):
            return False
    return True


def _bad_rows(samples: Sequence[Sample], width: int) -> list[int]:
    """Some rows of the tensor, `width` elements each, that are wrong."""
    places = [
        (sample.block.first + int(bad)) * sample.block.columns // width for sample in samples for bad in sample.bad
    ]
    rows = sorted(set(places))
    return rows[:: max(1, len(rows) // _PROBES)][:_PROBES]


def _exact_row(subject: Subject, samples: Sequence[Sample], row: int, width: int) -> Array:
    for sample in samples:
        place = np.flatnonzero(sample.block.first + sample.bad == row)
        if len(place) and sample.block.columns == width:
            found: Array = sample.exact[place[0]]
            return found
    return _row(subject, subject.step.base, row, width)


def _row(subject: Subject, ref: Ref, row: int, width: int) -> Array:
    numbers: Array = read_rows(subject.inputs, ref, row, row + 1, width)[0]
    return numbers


def elsewhere(subject: Subject, samples: Sequence[Sample], others: Sequence[Subject]) -> str:
    """Where the data may come from, in words; empty where that is not found."""
    shape, numel = subject.step.spec.shape, subject.step.spec.numel
    width = numel // shape[0] if len(shape) > 1 else numel
    if width < _WIDTH:
        return ""
    probes = _bad_rows(samples, width)
    found = np.stack([doubles(subject.read(row * width, (row + 1) * width), subject.dtype) for row in probes])
    own = np.linalg.norm(found - [_exact_row(subject, samples, row, width) for row in probes], axis=1)
    near = np.minimum(_NEAR * np.linalg.norm(found, axis=1), _NEARER * own)
    for other in others:
        away = np.linalg.norm(found - [_row(subject, other.step.base, row, width) for row in probes], axis=1)
        if (away < near).all():
            return f"holds the data of {shown(other.name)}"
    rows, distances = _nearest_rows(subject, found, width)
    if (distances < near).all():
        offset, count = Counter(row - probe for row, probe in zip(rows, probes, strict=True)).most_common(1)[0]
        return f"its rows are shifted by {-offset}" if count == len(probes) else "its rows are in another order"
    for other in others:
        edits = other.step.edits
        plain = bool(edits and subject.step.edits) and all(edit.view is None for edit in edits)
        if plain and all(sample.nearer(sample.under(subject, edits)) for sample in samples):
            return f"holds the change that belongs to {shown(other.name)}"
    return ""


def _nearest_rows(subject: Subject, found: Array, width: int) -> tuple[list[int], Array]:
    """Of each of some rows: the nearest row of the base's tensor, and how far it is."""
    base = subject.step.base
    count = base.spec.numel // width
    best, where = np.full(len(found), np.inf), np.zeros(len(found), np.int64)
    step = max(1, _AT_ONCE // width)
    for first in range(0, count, step):
        rows = read_rows(subject.inputs, base, first, min(count, first + step), width)
        squares = (rows * rows).sum(1) - 2 * found @ rows.T
        nearest = squares.argmin(1)
        least = squares[np.arange(len(found)), nearest]
        better = least < best
        best[better], where[better] = least[better], first + nearest[better]
    return where.tolist(), np.sqrt(np.maximum(best + (found * found).sum(1), 0))
