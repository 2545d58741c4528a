"""Honest ways to a merge that lose more than one rounding, computed as the tools compute them.

Each rounds factors, norms, the change or the scale on the way, to the dtype of the storage, of the factors, or to TF32
(to nearest, or cut off, as processors do it). Which of them a tool took shows in the numbers: they agree in nearly all.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.chain import Chain
from adaptertool.kinds import BY_NAME
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.numerics.rounding import Array, doubles, rounded
from adaptertool.plan import matrix
from adaptertool.region import choose
from adaptertool.spec import COMPUTED, Edit
from adaptertool.verdict.likeness import ROUNDOFF
from adaptertool.verdict.subject import Subject

Edits = tuple[Edit, ...]
Round = Callable[[Array], Array]
Turn = Callable[[Array, Array], Array]  # m and ‖V‖ -> their ratio

_TF32 = 11  # significant bits


def through(dtype: str) -> Round:
    """Rounding to a dtype and back to float64."""
    return lambda numbers: doubles(rounded(numbers, dtype), dtype)


def _tf32(numbers: Array) -> Array:
    mantissa, exponent = np.frexp(numbers)
    nearest: Array = np.ldexp(np.rint(np.ldexp(mantissa, _TF32)), exponent - _TF32)
    return nearest


def _cut_tf32(numbers: Array) -> Array:
    mantissa, exponent = np.frexp(numbers)
    cut: Array = np.ldexp(np.trunc(np.ldexp(mantissa, _TF32)), exponent - _TF32)
    return cut


def _as_it_is(numbers: Array) -> Array:
    return numbers


def _ratio(magnitude: Array, norms: Array, *, norm: Round, ratio: Round) -> Array:
    return ratio(magnitude / norm(norms))


class Outcome(NamedTuple):
    name: str
    is_narrow: bool  # loses more than float32 does
    numbers: Array  # before they are stored


class Simulated:
    """Rows of a tensor, in float64, as honest recipes make them."""

    def __init__(self, subject: Subject, first: int, rows: Array) -> None:
        self._subject, self._first, self._rows = subject, first, rows
        edits = subject.step.edits
        dtypes = {ref.spec.dtype for edit in edits for ref in edit.factors.values()}
        self._narrow = sorted(
            {subject.dtype, subject.step.spec.dtype, *dtypes} & set(COMPUTED), key=ROUNDOFF.__getitem__
        )
        self._narrow = [dtype for dtype in self._narrow if ROUNDOFF[dtype] > ROUNDOFF["F32"]]
        self._adapters = sorted({edit.adapter for edit in edits})
        self._turns = any(BY_NAME[edit.kind].squares is not None for edit in edits)

    def outcomes(self) -> Iterator[Outcome]:
        """The likeliest first. What is the same as one before it may come again."""
        yield Outcome("float32", False, self._mixed(self._states(None, None)[-1]))
        if self._subject.alpha not in (0, 1):
            yield from self._interpolations()
        for name, narrowing in self._factors():
            for norm in self._norms() if self._turns else [None]:
                states = self._states(narrowing, norm)
                for way, numbers in self._sums(states):
                    if narrowing or norm or way:
                        said = ", ".join(filter(None, (name, "norms rounded" if norm else "", way)))
                        yield Outcome(said, True, self._mixed(numbers))
        yield from self._rounded_before_the_norms()
        for name, share in self._scales():
            states = self._states(None, None)
            yield Outcome(name, True, self._mixed(states[0] + share * (states[-1] - states[0])))

    def _factors(self) -> Iterator[tuple[str, Round | None]]:
        yield "", None
        for dtype in self._narrow:
            yield f"factors in {dtype}", through(dtype)
        if self._narrow:  # beside float32 storage TF32 is no rounding that can be ignored
            yield "factors in TF32", _tf32
            yield "factors cut to TF32", _cut_tf32

    def _norms(self) -> Iterator[Turn | None]:
        """Ways from m and ‖V‖ to the ratio of both."""
        yield None
        for dtype in self._narrow:
            to = through(dtype)
            yield functools.partial(_ratio, norm=to, ratio=_as_it_is)
            yield functools.partial(_ratio, norm=_as_it_is, ratio=to)
            yield functools.partial(_ratio, norm=to, ratio=to)

    def _rounded_before_the_norms(self) -> Iterator[Outcome]:
        """V = W + Δ of a DoRA rounded, before it is multiplied by m/‖V‖."""
        edits = self._subject.step.edits
        if not self._turns or len(edits) > 1 or edits[0].view or edits[0].transposed or edits[0].weight != 1:
            return
        for dtype, narrowing in itertools.product(self._narrow, (None, *map(through, self._narrow))):
            to = through(dtype)
            chain = self._chain(edits, narrowing)
            after = self._rows.copy()
            (norm,) = chain.apply(after, self._first, self._rows).values()
            magnitude = chain.factors(0, edits[0], slice(self._first, self._first + len(after)))[MAGNITUDE]
            whole = to(after * (norm / magnitude))
            for norms, ratio in itertools.product((_as_it_is, to), repeat=2):
                yield Outcome(f"W + Δ in {dtype}", True, self._mixed(whole * ratio(magnitude / norms(norm))))

    def _chain(self, edits: Edits, narrowing: Round | None) -> Chain:
        step = self._subject.step._replace(edits=edits)
        return Chain(self._subject.inputs, step, matrix(self._subject.step), through=narrowing)

    def _sums(self, states: Sequence[Array]) -> Iterator[tuple[str, Array]]:
        """What becomes of the changes that the adapters make: summed at once, or stored after each."""
        changes = [after - before for before, after in itertools.pairwise(states)]
        stepwise = [False, True] if len(changes) > 1 else [False]
        for dtype, often, steps in itertools.product([None, *self._narrow], (1, 2), stepwise):
            if dtype is None and often > 1:
                continue
            total = states[0]
            for number, change in enumerate(changes):
                narrow = change if dtype is None else self._narrowed(change, number, dtype, often)
                total = total + narrow
                total = through(self._subject.step.spec.dtype)(total) if steps else total
            said = "" if dtype is None else f"change in {dtype}"
            yield ", ".join(filter(None, (said, "stored after each adapter" if steps else ""))), total

    def _narrowed(self, change: Array, number: int, dtype: str, often: int) -> Array:
        """The change rounded; or first the product of the factors, then its multiple by the scale."""
        if often == 1:
            return through(dtype)(change)
        own = [edit for edit in self._subject.step.edits if edit.adapter == self._adapters[number]]
        scale = own[0].scale * own[0].weight or 1.0
        return through(dtype)(scale * through(dtype)(change / scale))

    def _scales(self) -> Iterator[tuple[str, float]]:
        """A scale, a weight or an alpha that the dtype does not hold makes all of a change larger or smaller."""
        numbers = {self._subject.alpha}
        for edit in self._subject.step.edits:
            numbers |= {edit.scale, edit.weight, edit.scale * edit.weight}
        for dtype, number in itertools.product(self._narrow, sorted(numbers)):
            share = float(through(dtype)(np.array([number]))[0]) / number if number else 1.0
            if share != 1:
                yield f"scale in {dtype}", share

    def _mixed(self, after: Array) -> Array:
        alpha, rows = self._subject.alpha, self._rows
        return after if alpha == 1 else rows + alpha * (after - rows)

    def _interpolations(self) -> Iterator[Outcome]:
        rows, full = self._rows, self._states(None, None)[-1]
        for dtype in dict.fromkeys((*self._narrow, self._subject.dtype)):
            to = through(dtype)
            for tuned, (rest, own) in itertools.product((full, to(full)), self._shares(to)):
                apart = to(tuned - rows)
                yield Outcome(f"two products in {dtype}", True, to(rest * rows) + to(own * tuned))
                yield Outcome(f"product in {dtype}", True, rows + to(own * apart))
                yield Outcome(f"difference in {dtype}", True, rows + own * apart)
                yield Outcome(f"difference from the tuned in {dtype}", True, tuned - to(rest * apart))
                yield Outcome(f"tuned in {dtype}", True, rows + own * (tuned - rows))

    def _shares(self, to: Round) -> Sequence[tuple[float, float]]:
        """(1 − α, α) as they may be rounded: each by itself, or α first."""
        exact = np.array([1 - self._subject.alpha, self._subject.alpha])
        both = [exact, through("F32")(exact), to(exact), np.array([1 - to(exact)[1], to(exact)[1]])]
        return list(dict.fromkeys((float(rest), float(own)) for rest, own in both))

    def _states(self, narrowing: Round | None, turn: Turn | None) -> list[Array]:
        """[W, after the first adapter, ...]"""
        states, first, rows = [self._rows], self._first, self._rows
        for count in range(1, len(self._adapters) + 1):
            edits = tuple(edit for edit in self._subject.step.edits if edit.adapter in self._adapters[:count])
            chain = self._chain(edits, narrowing)
            after = rows.copy()
            norms = dict(chain.apply(after, first, rows))
            if turn is not None and norms:
                for number, norm in norms.items():
                    chosen = choose(edits[number], first, first + len(rows))
                    assert chosen is not None
                    magnitude = chain.factors(number, edits[number], chosen.places)[MAGNITUDE]
                    with np.errstate(all="ignore"):
                        norms[number] = magnitude / turn(magnitude, norm)
                after = rows.copy()
                chain.apply(after, first, rows, known=norms)
            states.append(after)
        return states
