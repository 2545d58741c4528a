"""Whether a tensor whose numbers may all be right, each by itself, was made by an honest recipe."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.codecs import BY_DTYPE, F32
from adaptertool.numerics.rounding import Array
from adaptertool.verification.evidence import DEVIATIONS, Lean, lean, toward_zero
from adaptertool.verification.recipes import Recipe, Round, Simulated, through
from adaptertool.verification.roundings import is_stochastic, is_truncated
from adaptertool.verification.sample import Sample, samples_of
from adaptertool.verification.subject import Candidate
from adaptertool.verification.tolerance import RECIPES

_ELEMENTS = 1 << 14  # of each part of a tensor
_CHOSEN = 10  # recipes that are compared in all parts
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


def examine(subject: Candidate, *, thorough: bool = False) -> Finding:
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
        if same <= most or 1 - same > _AS_MANY * (1 - most_without):
            continue
        leans = tuple(lean(off, direction, by_row=subject.turns) for direction in along)
        floor = NARROW_FLOOR if narrow else FLOOR
        leads = any(
            one.significant and abs(one.shift) > floor * float(np.vdot(direction, direction))
            for one, direction in zip(leans, along, strict=True)
        )
        if name == RECIPES[0] and not subject.turns:  # the whole tensor is known, and no error goes with its rows
            leads = leads or _leads_in_all(subject, along)
        if leads or _is_one_sided(off, found, exact, subject.dtype):
            most_without = max(most_without, same)
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


def _is_one_sided(off: Array, found: Array, exact: Array, dtype: str) -> bool:
    """Whether more is stored on one side than rounding to nearest leads to. Of float32 only the cut towards 0 is told:
    a scale that float32 does not hold is off by 3e-8, and turns as many roundings one way."""
    if BY_DTYPE[dtype].digits >= F32.digits:
        return is_truncated(found, exact, dtype)
    side = toward_zero(off, exact)
    return side.significant and abs(side.shift) > _LEANING * off.size


def _leads_in_all(subject: Candidate, along: Sequence[Array]) -> bool:
    """Whether the differences from the exact merge lead along a direction, in all of the tensor. Each difference is a
    sample of its own, since float32 sums have no errors in common. along: the directions, in some of the elements."""
    floor = FLOOR * subject.step.spec.numel * np.array([np.mean(direction * direction) for direction in along])
    shift, spread = subject.tally.shift[: len(along)], subject.tally.spread[: len(along)]
    return bool(((abs(shift) > DEVIATIONS * np.sqrt(spread)) & (abs(shift) > floor)).any())


def _stacked(parts: Sequence[Array]) -> Array:
    return np.concatenate(list(parts))


def _stored_by_recipes(subject: Candidate, samples: Sequence[Sample]) -> Iterator[tuple[str, bool, Array]]:
    """(name, whether it loses more than float32 does, what it stores): float32, then those that agree best in the first
    rows, the best first."""
    simulated = [list(Simulated(subject, sample.block.first, sample.base).recipes()) for sample in samples]
    own, dtype = subject.manner.through, subject.dtype
    if BY_DTYPE[dtype].roundoff > BY_DTYPE[own].roundoff:  # the base may have been cast before anything was added to it
        for recipes, sample in zip(simulated, samples, strict=True):
            cast = Simulated(subject, sample.block.first, through(dtype)(sample.base), store=dtype).recipes()
            recipes += [recipe._replace(name=f"base in {dtype}, {recipe.name}", is_narrow=True) for recipe in cast]
    stores = {"": through(dtype)}
    if own != dtype:
        stores[f", stored as {own} first"] = lambda numbers: through(dtype)(through(own)(numbers))
    choices = list(itertools.product(range(len(simulated[0])), stores))
    with np.errstate(all="ignore"):
        yield from (_stored(simulated, stores, choice) for choice in choices[: len(stores)])
        agreed = []
        for choice in choices[len(stores) :]:
            _, _, stored = _stored(simulated[:1], stores, choice)
            agreed.append((float(np.mean(stored == samples[0].found)), choice))
        agreed.sort(key=lambda pair: -pair[0])
        yield from (_stored(simulated, stores, choice) for _, choice in agreed[:_CHOSEN])


def _stored(
    simulated: Sequence[Sequence[Recipe]], stores: Mapping[str, Round], choice: tuple[int, str]
) -> tuple[str, bool, Array]:
    number, how = choice
    recipe = simulated[0][number]
    numbers = _stacked([recipes[number].numbers() for recipes in simulated])
    return recipe.name + how, recipe.is_narrow, stores[how](numbers)
