"""Whether the numbers of a wrong tensor are those of another place: turned, of other rows, or of another tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.tiling import needs_columns
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.tensors import read_rows
from adaptertool.errors import shown
from adaptertool.numerics.rounding import Array
from adaptertool.verification.sample import Sample
from adaptertool.verification.subject import Candidate

_PROBES = 4  # rows that are looked for
_WIDTH = 8  # elements that tell one row from another
_WIDE = 32  # elements that make a row of their own where a tensor has more than two dimensions
_AT_ONCE = 1 << 18  # elements that are searched
_NEAR, _NEARER = 0.3, 0.4  # distance to what it may be: relative to its length, and to the distance from where it is


def is_turned(subject: Candidate, samples: Sequence[Sample]) -> bool:
    """Whether a matrix is stored transposed: its columns are the rows that should be there."""
    shape = subject.candidate.spec.shape
    if len(shape) != 2 or shape[::-1] != subject.step.spec.shape:
        return False
    width = subject.step.spec.shape[1]
    for row in _bad_rows(samples, width):
        column = subject.candidate._replace(columns=range(row, row + 1))
        found = read_rows(subject.inputs, column, 0, shape[0], shape[1])[:, 0]
        right = _exact_rows(subject, [row], width)[0]
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


def _exact_rows(subject: Candidate, rows: Sequence[int], width: int) -> Array:
    """Some rows of `width` elements each of what a tensor should hold, in float64."""
    chain = Chain(subject.inputs, subject.step)
    return np.stack([_exact(subject, chain, row, row + 1, width)[0] for row in rows])


def _base_rows(subject: Candidate, rows: Sequence[int], width: int) -> Array:
    return np.stack([read_rows(subject.inputs, subject.step.base, row, row + 1, width)[0] for row in rows])


def _exact(subject: Candidate, chain: Chain, first: int, last: int, width: int) -> Array:
    begin, end = first * width // chain.columns, -(-last * width // chain.columns)  # of the matrix that edits act on
    if needs_columns(chain.step.edits):
        begin, end = 0, chain.rows
    base = read_rows(subject.inputs, subject.step.base, begin, end, chain.columns)
    after = base.copy()
    chain.apply(after, begin, base)
    exact = after if subject.alpha == 1 else base + subject.alpha * (after - base)
    skipped = first * width - begin * chain.columns
    cut: Array = exact.reshape(-1)[skipped : skipped + (last - first) * width].reshape(-1, width)
    return cut


def elsewhere(subject: Candidate, samples: Sequence[Sample], others: Sequence[Candidate]) -> str:
    """Where the data may come from, in words; empty where that is not found."""
    shape, numel = subject.step.spec.shape, subject.step.spec.numel
    width = shape[-1] if shape and shape[-1] >= _WIDE else numel // shape[0] if len(shape) > 1 else numel
    if width < _WIDTH:
        return ""
    probes = _bad_rows(samples, width)
    found = np.stack([doubles(subject.read(row * width, (row + 1) * width), subject.dtype) for row in probes])
    own = np.linalg.norm(found - _exact_rows(subject, probes, width), axis=1)
    near = np.minimum(_NEAR * np.linalg.norm(found, axis=1), _NEARER * own)
    for other in others:
        for what, rows_of in (("data", _exact_rows), ("base's data", _base_rows)):
            away = np.linalg.norm(found - rows_of(other, probes, width), axis=1)
            if (away < near).all():
                return f"holds the {what} of {shown(other.name)}"
    rows, distances = _nearest_rows(subject, found, width)
    if (distances < near).all():
        offsets = Counter((row - probe) % (numel // width) for row, probe in zip(rows, probes, strict=True))
        offset, count = offsets.most_common(1)[0]
        if 2 * count > len(probes):
            back = numel // width - offset  # rows roll over: the first ones come from the end
            return f"its rows are shifted by {back if back <= offset else -offset}"
        moved = ", ".join(f"{probe} holds {row}" for row, probe in zip(rows, probes, strict=True))
        return f"its rows are in another order: {moved}"
    for other in others:
        edits = other.step.edits
        plain = bool(edits and subject.step.edits) and all(edit.view is None for edit in edits)
        if plain and all(_nearer(sample, sample.under(subject, edits)) for sample in samples):
            return f"holds the change that belongs to {shown(other.name)}"
    return ""


def _nearest_rows(subject: Candidate, found: Array, width: int) -> tuple[list[int], Array]:
    """The nearest row of what the tensor should hold to each of some rows, and how far it is."""
    count = subject.step.spec.numel // width
    best, where = np.full(len(found), np.inf), np.zeros(len(found), np.int64)
    step, chain = max(1, _AT_ONCE // width), Chain(subject.inputs, subject.step)
    step = max(1, count) if needs_columns(subject.step.edits) else step
    for first in range(0, count, step):
        rows = _exact(subject, chain, first, min(count, first + step), width)
        squares = (rows * rows).sum(1) - 2 * found @ rows.T
        nearest = squares.argmin(1)
        least = squares[np.arange(len(found)), nearest]
        better = least < best
        best[better], where[better] = least[better], first + nearest[better]
    return where.tolist(), np.sqrt(np.maximum(best + (found * found).sum(1), 0))


def _nearer(sample: Sample, other: Array) -> bool:
    """Whether a change is much more like what is stored than the right one."""
    return sample.may_be(other) and bool(2 * sample.excess(other).mean() < sample.excess(sample.exact).mean())
