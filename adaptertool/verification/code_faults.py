"""Names the fault in codes that are wrong: other ways to read them, other scales, other changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.codecs.quantised.lattice import Lattice
from adaptertool.codecs.quantised.record import Weight
from adaptertool.codecs.tensors import reading
from adaptertool.numerics.rounding import Array
from adaptertool.verification.codes import Part, bounds, parts_of, scales_of, weight_of
from adaptertool.verification.hypotheses import Reading, hypotheses
from adaptertool.verification.sample import Sample
from adaptertool.verification.subject import Candidate

_BETTER = 0.5  # what a fault leaves over, at most
_ALIKE = 0.9  # correlation of codes with what they should stand for
_MOST = 1 << 24  # elements of a weight whose codes are looked at as a whole
_ELEMENTS = 1 << 16  # of the rows that are looked at
_NIBBLES = 16  # numbers of a table of four bits


class CodeFault(NamedTuple):
    code: str
    detail: str = ""


def code_fault(subject: Candidate, readings: Mapping[str, Reading], names: Sequence[str]) -> CodeFault:
    """What is wrong with a weight that is stored as codes."""
    part = _worst(subject)
    weight = weight_of(subject.candidate)
    if part is None or weight is None:
        return CodeFault("unknown")
    if not part.off.any():
        return CodeFault("untouched-codes", "the base's numbers are others in blocks that no change touches")
    if not np.isfinite(part.found).all():
        return CodeFault("nan", "a code, or a scale, means no number")
    if _as_in_base(subject, part) == (True, True):
        return CodeFault("not-applied")
    if (found := _by_reading(subject, weight, part)) is not None:
        return found
    if (other := _by_other_edits(subject, part, readings, names)) is not None:
        return other
    return _by_place(weight, part)


def _worst(subject: Candidate) -> Part | None:
    """The rows in which the most is wrong."""
    return max(parts_of(subject, _ELEMENTS), key=lambda part: int(np.count_nonzero(part.off)), default=None)


def _left(part: Part, numbers: Array) -> float:
    """How far numbers lie from what they should be: a sum of squares."""
    return float(np.square(numbers - part.values.exact).sum())


def _by_reading(subject: Candidate, weight: Weight, part: Part) -> CodeFault | None:
    """Codes or scales that are right where they are read in another way than loaders do."""
    if part.codes is None or part.scales is None or weight.lattice is None:
        return None
    own = weight.lattice.table[part.codes]
    with np.errstate(all="ignore"):
        wanted = np.where(part.scales == 0, 0, part.values.exact / part.scales)
    known = _alike(own, wanted)
    for code, codes, detail in _other_codes(subject, weight.lattice, part):
        if _alike(codes, wanted) > _ALIKE and known < _ALIKE:
            return CodeFault(code, detail)
    left = _left(part, part.found)
    for step, said in ((1, "above"), (-1, "below")):
        if _is_whole(weight.lattice) and _left(part, part.scales * (own + step)) < _BETTER**2 * left:
            return CodeFault("zero-point", f"all numbers are one step {said} what they should be")
    if _as_in_base(subject, part) == (True, False):
        return CodeFault("scales-of-others", "the codes are the base's, and the scales are not")
    if (found := _by_scales(subject, weight.lattice, part, own)) is not None:
        return found
    return None


def _as_in_base(subject: Candidate, part: Part) -> tuple[bool, bool]:
    """Whether all codes, and all scales, are the base's."""
    base = weight_of(subject.step.base)
    old = None if base is None else scales_of(base, subject, part)
    if base is None or base.lattice is None or old is None or part.codes is None:
        return False, False
    codes = base.lattice.codes(reading(subject.inputs), part.block.first, part.block.last)
    return np.array_equal(np.asarray(codes), part.codes), bool((old == part.scales).all())


def _alike(codes: Array, wanted: Array) -> float:
    """The correlation of what codes mean with what they should, without their means."""
    one, other = codes - codes.mean(), wanted - wanted.mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / size if size > 0 and np.isfinite(size) else 0.0


def _is_whole(lattice: Lattice) -> bool:
    """Whether codes are whole numbers, which a zero point moves."""
    return bool((np.diff(np.sort(lattice.table)) == 1).all())


def _other_codes(subject: Candidate, lattice: Lattice, part: Part) -> Iterator[tuple[str, Array, str]]:
    """(fault, what the codes would mean, detail)"""
    table, codes = lattice.table, part.codes
    assert codes is not None
    if len(table) == _NIBBLES and codes.shape[1] % 2 == 0:
        swapped = codes.reshape(len(codes), -1, 2)[:, :, ::-1].reshape(codes.shape)
        yield "nibbles-swapped", table[swapped], "the two codes of a byte stand in the other order"
        if codes.shape[1] % 8 == 0:
            turned = codes.reshape(len(codes), -1, 8)[:, :, ::-1].reshape(codes.shape)
            yield "nibbles-swapped", table[turned], "the eight codes of a word stand in the other order"
    if _is_whole(lattice):
        half = len(table) // 2
        yield "zero-point", table[codes ^ half], "codes are two's complement where they have an offset, or the reverse"
    rows, columns = lattice.grid.rows, lattice.grid.columns
    if rows * columns <= _MOST and subject.step.spec.numel == rows * columns:
        whole = np.asarray(lattice.codes(reading(subject.inputs), 0, rows))
        first, last = part.block.first, part.block.last
        said = "the codes are packed as those of the transposed weight"
        yield "codes-transposed", table[whole.reshape(columns, rows).T[first:last]], said
        if rows == columns:
            yield "codes-transposed", table[whole.T[first:last]], said


def _by_scales(subject: Candidate, lattice: Lattice, part: Part, own: Array) -> CodeFault | None:
    """Codes that are right on other scales than those beside them."""
    assert part.scales is not None and part.codes is not None
    size, down = lattice.grid.block[1], min(lattice.grid.block[0], len(own))
    starts = np.arange(0, len(own), down), np.arange(0, own.shape[1], size)

    def summed(array: Array) -> Array:
        found = np.add.reduceat(np.add.reduceat(array, starts[0], axis=0), starts[1], axis=1)
        spread: Array = np.repeat(np.repeat(found, down, axis=0)[: len(own)], size, axis=1)[:, : own.shape[1]]
        return spread

    with np.errstate(all="ignore"):
        fitted = np.nan_to_num(summed(own * part.values.exact) / summed(own * own))
    if not _left(part, own * fitted) < _BETTER**2 * _left(part, part.found):
        return None
    low, high = bounds(lattice, part.codes)
    slack = 0.5 * (high - low) * abs(fitted)
    fits = (part.values.exact >= low * fitted - slack) & (part.values.exact <= high * fitted + slack)
    if np.mean(fits) < _ALIKE:
        return None
    with np.errstate(all="ignore"):
        if np.allclose(fitted * part.scales, 1, rtol=0.2):
            return CodeFault("scales-inverted", "each scale is one over what it should be")
    if _as_in_base(subject, part)[1]:
        return CodeFault("scales-of-others", "the scales are the base's, and the codes were made for others")
    ratio = float(np.median(fitted[part.scales > 0] / part.scales[part.scales > 0]))
    return CodeFault("scales-of-others", f"codes would be right on scales about {ratio:.4g} times those beside them")


def _by_other_edits(
    subject: Candidate, part: Part, readings: Mapping[str, Reading], names: Sequence[str]
) -> CodeFault | None:
    """Another change than the right one, whose nearest codes these are."""
    wrong = int(np.count_nonzero(part.off))
    none = np.zeros_like(part.found)
    sample = Sample(
        part.block, np.arange(len(part.found)), part.values.base, part.values.exact, part.found, none, none, ()
    )
    found: list[tuple[int, str, str]] = []
    for code, edits, detail in hypotheses(subject, readings, names) if wrong else ():
        meant = sample.under(subject, edits)
        found.append((int(np.count_nonzero(part._replace(values=part.values._replace(exact=meant)).off)), code, detail))
    least = min(found, default=None, key=lambda one: one[0])
    return CodeFault(least[1], least[2]) if least is not None and least[0] <= _BETTER * wrong else None


def _by_place(weight: Weight, part: Part) -> CodeFault:
    """What is left: codes beside the nearest ones."""
    bad = part.off > 0
    value, found = part.values.exact[bad], part.found[bad]
    if weight.lattice is not None and part.codes is not None:
        ends = np.isin(weight.lattice.table[part.codes[bad]], weight.lattice.ends)
        if ends.all() and (abs(value) > abs(found)).all():
            return CodeFault("cut-off", "numbers are beyond what their scale holds")
    if (abs(found) < abs(value)).all():
        return CodeFault("truncated", "codes are cut off towards 0, not rounded to nearest")
    width = (part.high - part.low)[bad]
    if (part.off[bad] <= width).all():
        return CodeFault(
            "not-nearest", "codes beside the nearest ones, as where they are calibrated or drawn by chance"
        )
    return CodeFault("unknown")
