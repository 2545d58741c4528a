"""Judges weights that a candidate stores as codes: each must be the nearest to what it should be, on the scale beside
it.

A scale may be another than the base's: that is what merges do that quantise anew. It is right as long as it cuts
nothing off, by more than rules in use do: amax / 7.5 for codes up to 7, amax / 6 rounded down to a power of two. So the
last code stands for what lies up to one step beyond it. What no change touches must have the base's numbers.

A number may have been rounded on its way to its code as it may be where it is stored itself (verification.tolerance):
that moves it by much less than codes are apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from adaptertool.arithmetic.block import Block
from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.tiling import needs_columns
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.quantised.lattice import Lattice, levels_of
from adaptertool.codecs.quantised.record import Weight
from adaptertool.codecs.tensors import read_stored, reading
from adaptertool.errors import UnsupportedError, shown
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import ReadStored, Ref
from adaptertool.verification.coarse import cut_of, is_least, steps
from adaptertool.verification.subject import Candidate
from adaptertool.verification.tolerance import RECIPES, Values, limits

_ELEMENTS = 1 << 18  # of a part
_FUZZ = 2.0**-44  # of the numbers that are added up: what float64 loses


class Part(NamedTuple):
    """Some rows of such a weight, matrices (rows, columns) of float64."""

    block: Block
    values: Values  # W, v and magnitudes; v is what it should be
    found: Array  # as the candidate has it, decoded
    codes: Array | None  # uint8; None where the format does not say how its codes lie
    scales: Array | None  # of each number
    low: Array  # what lies from here
    high: Array  # to here is nearest to what is found

    @property
    def off(self) -> Array:
        """By how much v lies outside."""
        beyond: Array = np.maximum(np.maximum(self.low - self.values.exact, self.values.exact - self.high), 0)
        beyond[beyond <= _FUZZ * self.values.terms] = 0
        return beyond


class Coded(NamedTuple):
    """What was found of a weight."""

    differ: int = 0  # numbers that are not what they should be
    outside: tuple[int, ...] = (0,) * len(RECIPES)  # of these, those that no recipe explains
    anew: bool = False  # some scale is another than the base's, which holds what it is for
    touched: int = 0  # numbers in blocks that no change touches, and that are others than the base's
    error: float = 0.0  # Σ(found − v)²
    size: float = 0.0  # Σv²
    lost: float = 0.0  # Σ(found − v)² on scales that are not the base's,
    may: float = 0.0  # and how much of that other scales would leave (verification.coarse)

    @property
    def coarse(self) -> bool:
        """Whether scales are much larger than what they hold needs."""
        return self.lost > self.may

    @property
    def recipe(self) -> int | None:
        return next((number for number, count in enumerate(self.outside) if not count), None)


def weight_of(ref: Ref) -> Weight | None:
    """What the codes are that a tensor is made of; None where it is no such."""
    weight = None if ref.made is None else ref.made.weight
    return weight if isinstance(weight, Weight) else None


def judge_codes(subject: Candidate) -> Coded:
    """Compare all of a weight. Raises UnsupportedError for codes of a format of which the nearest is not known."""
    base, changes = weight_of(subject.step.base), bool(subject.step.edits) and subject.alpha != 0
    if base is not None and not changes:
        return _unchanged(subject)
    found, weight = Coded(), weight_of(subject.candidate)
    lattice = None if weight is None else weight.lattice
    for part in parts_of(subject):
        off = part.off
        outside = found.outside
        if off.any():
            own = subject.manner._replace(dtype=subject.step.spec.dtype, through=subject.step.spec.dtype)
            flat = Values(*(array.ravel() for array in part.values))
            allowed = limits(flat, part.found.ravel(), own)
            counts = (int(np.count_nonzero(off.ravel() > limit)) for limit in allowed)
            outside = tuple(one + more for one, more in zip(outside, counts, strict=True))
        old = None if base is None else scales_of(base, subject, part)
        anew, touched = (False, 0) if base is None or old is None else _kept(subject, part, base, old)
        losses = _losses(part, lattice, old) if lattice is not None else (0.0, 0.0)
        found = Coded(
            found.differ + int(np.count_nonzero(off)),
            outside,
            found.anew or anew,
            found.touched + touched,
            found.error + float(np.square(part.found - part.values.exact).sum()),
            found.size + float(np.square(part.values.exact).sum()),
            *map(sum, zip((found.lost, found.may), losses, strict=True)),
        )
    return found


def _unchanged(subject: Candidate) -> Coded:
    """A weight that is codes in the base too, and that nothing changes: the same numbers."""
    count, differ, error, size = subject.step.spec.numel, 0, 0.0, 0.0
    for first in range(0, count, _ELEMENTS):
        last = min(count, first + _ELEMENTS)
        ours, theirs = (read_stored(subject.inputs, ref, first, last) for ref in (subject.step.base, subject.candidate))
        differ += int(np.count_nonzero(~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))))
        error, size = error + float(np.square(ours - theirs).sum()), size + float(np.square(ours).sum())
    return Coded(differ, (differ,) * len(RECIPES), False, differ, error, size)


def parts_of(subject: Candidate, elements: int = _ELEMENTS) -> Iterator[Part]:
    """All of a weight, in rows whose blocks are whole where blocks are not too large for that."""
    weight, changes = weight_of(subject.candidate), bool(subject.step.edits)
    rows, columns = subject.cut
    if not rows * columns or weight is None:
        return
    lattice = weight.lattice
    down = 1 if lattice is None else lattice.grid.block[0]
    count = max(1, elements // columns)
    count = max(count - count % down, down) if down * columns <= 16 * elements else count
    if needs_columns(subject.step.edits):
        count = rows
    chain, terms = Chain(subject.inputs, subject.step, subject.cut), subject.terms()
    for first in range(0, rows, count):
        last = min(rows, first + count)
        block = Block(subject.step, first, last, columns, chain)
        before = read_stored(subject.inputs, subject.step.base, block.start, block.start + block.numel)
        numbers = doubles(before, subject.step.base.spec.dtype)
        flat = subject.values(block, before, terms) if changes else Values(numbers, numbers, abs(numbers))
        values = Values(*(each.reshape(-1, columns) for each in flat))
        found = doubles(subject.read(block.start, block.start + block.numel), "F64").reshape(-1, columns)
        yield Part(block, values, found, *_around(subject, weight, block, found))


def _around(
    subject: Candidate, weight: Weight, block: Block, found: Array
) -> tuple[Array | None, Array | None, Array, Array]:
    """(codes, scales, low, high) of some rows."""
    read, lattice = reading(subject.inputs), weight.lattice
    if lattice is None or lattice.grid.columns != block.columns:
        return None, None, *_by_table(subject, weight, block, found)
    codes = np.asarray(lattice.codes(read, block.first, block.last))
    scales = lattice.rounded(read, block.first, block.last)
    low, high = bounds(lattice, codes)
    return codes, scales, low * scales, high * scales


def bounds(lattice: Lattice, codes: Array) -> tuple[Array, Array]:
    """The ends of what each code is nearest to, before its scale; NaN where a code means nothing."""
    levels = levels_of(lattice.table.tobytes())
    ends = _ends(levels.values)
    places = np.searchsorted(levels.values, np.nan_to_num(lattice.table))
    low, high = ends[:-1][places], ends[1:][places]
    low[np.isnan(lattice.table)] = high[np.isnan(lattice.table)] = np.nan
    return low[codes], high[codes]


def _ends(values: Array) -> Array:
    """Where each of some numbers in ascending order ends and the next begins: (m + 1,)."""
    first, last = 2 * values[0] - values[1], 2 * values[-1] - values[-2]
    return np.concatenate(([first], (values[1:] + values[:-1]) / 2, [last]))


def _by_table(subject: Candidate, weight: Weight, block: Block, found: Array) -> tuple[Array, Array]:
    """The same of a format whose table is a tensor: its numbers are decoded by tables of the ends. Raises
    UnsupportedError for others."""
    table = next((ref for ref in weight.parts if ref.spec.name.endswith(".quant_map")), None)
    if table is None or weight.width != block.columns:
        raise UnsupportedError(
            f"{subject.candidate.path}: {shown(subject.name)} is stored as {weight.format}, whose codes are not always "
            "the nearest ones (they are calibrated, or have zeros of their own): a merge into it is not judged"
        )
    read = reading(subject.inputs)
    values, places = np.unique(np.asarray(read(table, 16, 0, 1)[0]).astype(np.float64), return_inverse=True)
    ends = _ends(values)
    low, high = (
        weight.rows(_instead(read, table, chosen), block.first, block.last).reshape(found.shape)
        for chosen in (ends[:-1][places], ends[1:][places])
    )
    return low, high


def _instead(read: ReadStored, table: Ref, numbers: Array) -> ReadStored:
    """How to read, with other numbers in the place of a table."""

    def reads(ref: Ref, width: int, first: int, last: int, begin: int = 0, end: int | None = None) -> Any:
        return numbers[None].astype(np.float32) if ref is table else read(ref, width, first, last, begin, end)

    return reads


def scales_of(base: Weight, subject: Candidate, part: Part) -> Array | None:
    """The scale that the base has of each number of a part; None where both are not codes of the same columns."""
    if base.lattice is None or part.scales is None or base.lattice.grid.columns != part.block.columns:
        return None
    return base.lattice.rounded(reading(subject.inputs), part.block.first, part.block.last)


def _kept(subject: Candidate, part: Part, base: Weight, old: Array) -> tuple[bool, int]:
    """(whether a scale is neither the base's nor, where that does not hold all numbers, the smallest that does; how
    many numbers differ from the base's in blocks that no change touches). old: the base's scales"""
    lattice, exact = base.lattice, part.values.exact
    if lattice is None or part.scales is None or (cut := cut_of(lattice, part.block)) is None:
        return False, 0
    low, high = (old * end for end in lattice.ends)
    others = ~cut.all(old == part.scales)
    slack = _FUZZ * part.values.terms
    holds = cut.all((exact - slack >= low) & (exact + slack <= high))
    least = is_least(lattice, cut, exact, part.scales, lattice.whole_of(reading(subject.inputs)))
    still = lattice.spread(cut.all(exact == part.values.base), cut.places)
    return bool((others & (holds | ~least)).any()), int(np.count_nonzero(still & (part.found != part.values.base)))


def _losses(part: Part, lattice: Lattice, old: Array | None) -> tuple[float, float]:
    """Σ (found − v)² of numbers whose scale is not the base's, and Σ of squares of the steps that they may err by.
    old: the base's scales"""
    if part.scales is None or (cut := cut_of(lattice, part.block)) is None:
        return 0.0, 0.0
    anew = np.ones(part.found.shape, bool) if old is None else old != part.scales
    if not anew.any():
        return 0.0, 0.0
    wide = steps(lattice, cut, part.values.exact)
    return float(np.square(part.found - part.values.exact)[anew].sum()), float(np.square(wide)[anew].sum())
