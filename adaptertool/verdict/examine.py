"""Whether a tensor whose numbers may all be right, each by itself, was made by an honest recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.numerics.rounding import Array
from adaptertool.spec import COMPUTED
from adaptertool.verdict.evidence import Lean, lean, toward_zero
from adaptertool.verdict.likeness import RECIPES
from adaptertool.verdict.recipes import Simulated, through
from adaptertool.verdict.roundings import is_stochastic
from adaptertool.verdict.sample import Sample, samples_of
from adaptertool.verdict.subject import Subject

_ELEMENTS = 1 << 14  # of each part of a tensor
_SAME = 0.999  # share of the elements in which a recipe agrees that is surely the one
_MAY_BE_ANOTHER = 0.9  # below this share no recipe known here was at work
_AS_MANY = 1.25  # times the differences that a recipe leaves which explains nothing
# What an honest recipe may change of a scale, relatively: roundings of numbers that are all alike do not average out.
FLOOR, NARROW_FLOOR = 2.0**-18, 2.0**-12
_LEANING = 0.02  # share of all elements by which more lead to one side than to the other: ties that go one way are few


class Finding(NamedTuple):
    """recipe: the one that explains what is stored; None where none does. leans: along what each adapter changes, of
    what the recipe leaves over."""

    recipe: str | None
    leans: tuple[Lean, ...] = ()


def examine(subject: Subject, *, thorough: bool = False) -> Finding:
    """Compare rows from all of a tensor with what honest recipes store, the likeliest first.

    A recipe explains them if it leaves nothing over that leads along the change of an adapter (or along W' under DoRA),
    or to one side. Of those that do the one that agrees in the most elements counts; not if one that does not explain
    them agrees in many more: then it is noise of a recipe that nobody used that hides what is wrong. thorough: all are
    compared, also where one agrees in nearly all.
    """
    samples = list(samples_of(subject, _ELEMENTS))
    if not samples:
        return Finding(None)
    found, exact = _stacked([s.found for s in samples]), _stacked([s.exact for s in samples])
    along = [_stacked(parts) for parts in zip(*(sample.directions for sample in samples), strict=True)]
    best, most, most_without = Finding(None), -1.0, 0.0
    for name, narrow, stored in _stored_by_recipes(subject, samples):
        off = found - stored
        if not np.isfinite(off).all():
            continue
        same = float(np.mean(off == 0))
        leans = tuple(lean(off, direction) for direction in along)
        floor = NARROW_FLOOR if narrow else FLOOR
        leads = any(
            one.significant and abs(one.shift) > floor * float(np.vdot(direction, direction))
            for one, direction in zip(leans, along, strict=True)
        )
        side = toward_zero(off, exact)
        if leads or (side.significant and abs(side.shift) > _LEANING * off.size):
            most_without = max(most_without, same)
            continue
        if same <= most:
            continue
        best, most = Finding(name, leans[: len(subject.adapters)]), same
        if same == 1 or (same > _SAME and not thorough):
            break
    if 1 - most > _AS_MANY * (1 - most_without):
        return Finding(None)
    if most < _MAY_BE_ANOTHER and best.recipe is not None:
        if is_stochastic(found, exact, subject.dtype):
            return Finding(None)
        return best._replace(recipe=RECIPES[subject.tally.recipe or 0])
    return best


def _stacked(parts: Sequence[Array]) -> Array:
    return np.concatenate(list(parts))


def _stored_by_recipes(subject: Subject, samples: Sequence[Sample]) -> Iterator[tuple[str, bool, Array]]:
    """(name, whether it loses more than float32 does, what it stores)"""
    own, dtype = subject.step.spec.dtype, subject.dtype
    simulated = [Simulated(subject, sample.block.first, sample.base) for sample in samples]
    with np.errstate(all="ignore"):
        for outcomes in zip(*(one.outcomes() for one in simulated), strict=True):
            numbers = _stacked([outcome.numbers for outcome in outcomes])
            yield outcomes[0].name, outcomes[0].is_narrow, through(dtype)(numbers)
            if own != dtype and own in COMPUTED:
                name = f"{outcomes[0].name}, stored as {own} first"
                yield name, outcomes[0].is_narrow, through(dtype)(through(own)(numbers))
