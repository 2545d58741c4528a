"""Honest ways to a merge that lose more than one rounding, computed as the tools compute them.

Each rounds factors, norms, the change or the scale on the way, to the dtype of the storage, of the factors, or to TF32
(to nearest, or cut off, as processors do it). Which of them a tool took shows in the numbers: they agree in nearly all.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.region import choose
from adaptertool.arithmetic.tiling import matrix
from adaptertool.codecs import BY_DTYPE, COMPUTED, F32
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.kinds import kind_of
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Edit
from adaptertool.verification.subject import Candidate

Edits = tuple[Edit, ...]
Round = Callable[[Array], Array]
Turn = Callable[[Array, Array], Array]  # m and ‖V‖ -> their ratio

_TF32 = 11  # significant bits


def _roundoff(dtype: str) -> float:
    return BY_DTYPE[dtype].roundoff


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


def _length(edit: Edit) -> str:
    """The role of the factor that stands over the norms of an edit that has such."""
    norms = kind_of(edit).norms
    assert norms is not None
    return norms.length


class _Ends(NamedTuple):
    """W and T, how far from each (1 − α and α), and the rounding on the way."""

    rows: Array
    tuned: Array
    rest: float
    own: float
    to: Round


_WAYS: Mapping[str, Callable[[_Ends], Array]] = {
    "two products": lambda e: e.to(e.rest * e.rows) + e.to(e.own * e.tuned),
    "product": lambda e: e.rows + e.to(e.own * e.to(e.tuned - e.rows)),
    "difference": lambda e: e.rows + e.own * e.to(e.tuned - e.rows),
    "difference from the tuned": lambda e: e.tuned - e.to(e.rest * e.to(e.tuned - e.rows)),
    "tuned": lambda e: e.rows + e.own * (e.tuned - e.rows),
}


class Recipe(NamedTuple):
    name: str
    is_narrow: bool  # loses more than float32 does
    numbers: Callable[[], Array]  # computes what it makes of the rows, before that is stored


class Simulated:
    """Rows of a tensor, in float64, as honest recipes make them."""

    def __init__(self, subject: Candidate, first: int, rows: Array, *, store: str = "") -> None:
        """first: the row where they begin; store: the dtype of the weight between two adapters, if not its own."""
        self._store = store or subject.step.spec.dtype
        self._subject, self._first, self._rows = subject, first, rows
        edits = subject.step.edits
        dtypes = {ref.spec.dtype for edit in edits for ref in edit.factors.values()}
        stored = sorted({subject.dtype, subject.step.spec.dtype, *dtypes} & set(COMPUTED), key=_roundoff)
        self._narrow = [dtype for dtype in stored if _roundoff(dtype) > F32.roundoff]
        self._known: dict[tuple[str, str], list[Array]] = {}

    def recipes(self) -> Iterator[Recipe]:
        """The likeliest first. What is the same as one before it may come again."""
        yield Recipe("float32", False, lambda: self._mixed(self._states()[-1]))
        if self._subject.alpha not in (0, 1):
            yield from self._interpolations()
        for (name, narrowing), (turn, ratio) in itertools.product(self._factors(), self._norms()):
            for way, total in self._sums(name, narrowing, turn, ratio):
                if said := ", ".join(filter(None, (name, turn, way))):
                    yield Recipe(said, True, functools.partial(self._computed, total))
        yield from self._rounded_before_the_norms()
        for name, share in self._scales():
            yield Recipe(name, True, functools.partial(self._scaled, share))

    def _computed(self, total: Callable[[], Array]) -> Array:
        return self._mixed(total())

    def _scaled(self, share: float) -> Array:
        first, *_, last = self._states()
        return self._mixed(first + share * (last - first))

    def _factors(self) -> Iterator[tuple[str, Round | None]]:
        yield "", None
        for dtype in self._narrow:
            yield f"factors in {dtype}", through(dtype)
        if self._narrow:  # beside float32 storage TF32 is no rounding that can be ignored
            yield "factors in TF32", _tf32
            yield "factors cut to TF32", _cut_tf32

    def _norms(self) -> Iterator[tuple[str, Turn | None]]:
        """Ways from m and ‖V‖ to the ratio of both."""
        yield "", None
        for dtype in self._narrow if self._subject.turns else ():
            to = through(dtype)
            yield f"norms in {dtype}", functools.partial(_ratio, norm=to, ratio=_as_it_is)
            yield f"m/‖V‖ in {dtype}", functools.partial(_ratio, norm=_as_it_is, ratio=to)
            yield f"norms and m/‖V‖ in {dtype}", functools.partial(_ratio, norm=to, ratio=to)

    def _rounded_before_the_norms(self) -> Iterator[Recipe]:
        """V = W + Δ of a DoRA rounded, before it is multiplied by m/‖V‖."""
        edits = self._subject.step.edits
        plain = len(edits) == 1 and not (edits[0].view or edits[0].transposed) and edits[0].weight == 1
        for dtype in self._narrow if self._subject.turns and plain else ():
            to, narrowings = through(dtype), (None, *map(through, self._narrow))
            for narrowing, norm, ratio in itertools.product(narrowings, (_as_it_is, to), (_as_it_is, to)):
                make = functools.partial(self._turned, to, narrowing, norm, ratio)
                yield Recipe(f"W + Δ in {dtype}", True, make)

    def _turned(self, to: Round, narrowing: Round | None, norm: Round, ratio: Round) -> Array:
        edits = self._subject.step.edits
        chain = self._chain(edits, narrowing)
        after = self._rows.copy()
        (norms,) = chain.apply(after, self._first, self._rows).values()
        magnitude = chain.factors(0, edits[0], slice(self._first, self._first + len(after)))[_length(edits[0])]
        return self._mixed(to(after * (norms / magnitude)) * _ratio(magnitude, norms, norm=norm, ratio=ratio))

    def _chain(self, edits: Edits, narrowing: Round | None) -> Chain:
        step = self._subject.step._replace(edits=edits)
        return Chain(self._subject.inputs, step, matrix(self._subject.step), through=narrowing)

    def _sums(
        self, name: str, narrowing: Round | None, turn: str, ratio: Turn | None
    ) -> Iterator[tuple[str, Callable[[], Array]]]:
        """What becomes of the changes that the adapters make: summed at once, or stored after each."""
        for dtype, often, steps in itertools.product([None, *self._narrow], (1, 2), (False, True)):
            if (dtype is None and often > 1) or (steps and len(self._subject.adapters) < 2):
                continue
            states = functools.partial(self._states, name, narrowing, turn, ratio)
            said = "" if dtype is None else f"change in {dtype}"
            total = functools.partial(self._summed, states, dtype, often, steps=steps)
            yield ", ".join(filter(None, (said, "stored after each adapter" if steps else ""))), total

    def _summed(self, states: Callable[[], list[Array]], dtype: str | None, often: int, *, steps: bool) -> Array:
        total, store = states()[0], through(self._store)
        for number, (before, after) in enumerate(itertools.pairwise(states())):
            change = after - before
            total = total + (change if dtype is None else self._narrowed(change, number, dtype, often))
            total = store(total) if steps else total
        return total

    def _narrowed(self, change: Array, number: int, dtype: str, often: int) -> Array:
        """The change rounded; or first the product of the factors, then its multiple by the scale."""
        if often == 1:
            return through(dtype)(change)
        own = [edit for edit in self._subject.step.edits if edit.adapter == self._subject.adapters[number]]
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

    def _interpolations(self) -> Iterator[Recipe]:
        for dtype in dict.fromkeys((*self._narrow, self._subject.dtype)):
            to = through(dtype)
            for tuned, (rest, own) in itertools.product((_as_it_is, to), self._shares(to)):
                for name, way in _WAYS.items():
                    make = functools.partial(self._between, way, tuned, rest, own, to)
                    yield Recipe(f"{name} in {dtype}", True, make)

    def _between(self, way: Callable[[_Ends], Array], tuned: Round, rest: float, own: float, to: Round) -> Array:
        return way(_Ends(self._rows, tuned(self._states()[-1]), rest, own, to))

    def _shares(self, to: Round) -> Sequence[tuple[float, float]]:
        """(1 − α, α) as they may be rounded: each by itself, or α first."""
        exact = np.array([1 - self._subject.alpha, self._subject.alpha])
        both = [exact, through("F32")(exact), to(exact), np.array([1 - to(exact)[1], to(exact)[1]])]
        return list(dict.fromkeys((float(rest), float(own)) for rest, own in both))

    def _states(
        self, name: str = "", narrowing: Round | None = None, turn: str = "", ratio: Turn | None = None
    ) -> list[Array]:
        """[W, after the first adapter, ...]; name and turn say what the functions beside them do."""
        if (name, turn) in self._known:
            return self._known[name, turn]
        states, first, rows = [self._rows], self._first, self._rows
        for last in self._subject.adapters:
            edits = tuple(edit for edit in self._subject.step.edits if edit.adapter <= last)
            chain = self._chain(edits, narrowing)
            after = rows.copy()
            norms = dict(chain.apply(after, first, rows))
            if ratio is not None and norms:
                for number, norm in norms.items():
                    chosen = choose(edits[number], first, first + len(rows))
                    assert chosen is not None
                    magnitude = chain.factors(number, edits[number], chosen.places)[_length(edits[number])]
                    with np.errstate(all="ignore"):
                        norms[number] = magnitude / ratio(magnitude, norm)
                after = rows.copy()
                chain.apply(after, first, rows, known=norms)
            states.append(after)
        self._known[name, turn] = states
        return states
