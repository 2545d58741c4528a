"""One tensor of a candidate, with what it should hold and what was found of it."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator

import numpy as np

from adaptertool.arithmetic.block import Block, part
from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.single import pick
from adaptertool.arithmetic.tiling import matrix
from adaptertool.arithmetic.verbatim import verbatim
from adaptertool.codecs import BY_DTYPE, COMPUTED
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.tensors import held_as, read_stored
from adaptertool.files.reader import Inputs
from adaptertool.kinds import kind_of
from adaptertool.numerics.ops import FLOATS
from adaptertool.numerics.rounding import Array
from adaptertool.records import dataclass, field
from adaptertool.spec.plan import Step
from adaptertool.spec.tensors import Ref
from adaptertool.verification.evidence import DEVIATIONS
from adaptertool.verification.tolerance import RECIPES, Manner, Values, least_normal

EXACT, ROUNDING, WRONG, CHANGED = "exact", "rounding", "wrong", "untouched_changed"


@dataclass(slots=True)
class Tally:
    """What was found of a tensor, or a part of it."""

    differ: int = 0  # elements that are not stored as they should be
    apart: int = 0  # largest distance, in representable numbers
    not_finite: int = 0  # where a number should be
    beyond: int = 0  # of these: numbers that the dtype does not hold
    error: float = 0.0  # ‖C − E‖², of what is stored and what should be
    size: float = 0.0  # ‖E‖²
    outside: list[int] = field(default_factory=lambda: [0] * len(RECIPES))  # elements that a recipe does not explain
    first_outside: int | None = None
    # Along each of Subject.directions, and for the signs of C − E along those of E: sums, and sums of squares
    shift: Array = field(default_factory=lambda: np.zeros(0))
    spread: Array = field(default_factory=lambda: np.zeros(0))

    def add(self, other: Tally) -> None:
        for name in ("differ", "not_finite", "beyond", "error", "size"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.apart = max(self.apart, other.apart)
        self.outside = [one + two for one, two in zip(self.outside, other.outside, strict=True)]
        places = [place for place in (self.first_outside, other.first_outside) if place is not None]
        self.first_outside = min(places, default=None)
        if len(other.shift):
            self.shift = self.shift + other.shift if len(self.shift) else other.shift
            self.spread = self.spread + other.spread if len(self.spread) else other.spread

    @property
    def recipe(self) -> int | None:
        """The first of RECIPES that explains each difference by itself; None where none does."""
        if self.not_finite:
            return None
        return next((number for number, count in enumerate(self.outside) if not count), None)

    @property
    def leans(self) -> bool:
        """Whether the differences may have a direction in common: then all must be looked at together."""
        return bool((abs(self.shift) > DEVIATIONS * np.sqrt(self.spread)).any())


class Candidate:
    """One tensor of the candidate, with what it should hold: `step` at `alpha`."""

    def __init__(self, step: Step, alpha: float, candidate: Ref, inputs: Inputs) -> None:
        self.step, self.alpha, self.candidate, self.inputs = step, alpha, candidate, inputs
        self._tallies, self._lock = dict[int, Tally](), threading.RLock()
        self._wrong: int | None = None  # the first block in which enough is wrong for all
        self.source = verbatim(step, alpha)  # the bytes that it should have, where nothing is computed
        self._chains: dict[int, Chain] = {}
        self.scale: float | None = None  # of an adapter's change, where all tensors together say that it is not 1
        self.explained: str | None = None  # the recipe by which it is right, though not exact

    @property
    def name(self) -> str:
        return self.step.spec.name

    @property
    def dtype(self) -> str:
        """The dtype as which the candidate stores the tensor."""
        return self.candidate.spec.dtype

    @property
    def cut(self) -> tuple[int, int]:
        """Rows and columns as which it is judged: of codes those that have scales in common, whatever is edited."""
        made = self.candidate.made
        if made is None or made.weight is None:
            return matrix(self.step)
        return self.step.spec.numel // made.width, made.width

    @functools.cached_property
    def _dtypes(self) -> set[str]:
        """The dtypes of the storage and of the factors that arithmetic is done on."""
        refs = [ref for edit in self.step.edits for ref in edit.factors.values()]
        return {self.dtype, self.step.spec.dtype, *(ref.spec.dtype for ref in refs)} & COMPUTED

    @property
    def _largest_scale(self) -> float:
        return max([1.0, *(abs(edit.scale * edit.weight) for edit in self.step.edits)])

    @functools.cached_property
    def manner(self) -> Manner:
        edits = self.step.edits
        refs = [ref for edit in edits for ref in edit.factors.values()]
        return Manner(
            self.dtype,
            self._through,
            max(BY_DTYPE[dtype].roundoff for dtype in self._dtypes),
            sum(min(ref.spec.shape, default=1) for ref in refs),
            max(1, len({edit.adapter for edit in edits})),
            max(least_normal(dtype) * BY_DTYPE[dtype].roundoff for dtype in self._dtypes) * self._largest_scale,
            4.0 if self.turns else 2.5 if self.alpha not in (0, 1) else 0.0,
        )

    @property
    def _through(self) -> str:
        """The dtype that numbers may have had on the way: the base's. What is decoded had none that rounds."""
        made = self.step.base.made
        own = self.step.base.spec.dtype if made is not None and made.decodes else self.step.spec.dtype
        return own if own in COMPUTED else self.dtype

    def verdict(self) -> tuple[str, str | None]:
        """(status, recipe)."""
        if not self.tally.differ and not self.tally.not_finite:
            return EXACT, None
        if self.source is not None:
            return CHANGED if self.source is self.step.base else WRONG, None
        return (WRONG, None) if self.explained is None else (ROUNDING, self.explained)

    def terms(self) -> Chain:
        """The edits with magnitudes in the place of numbers; of factors in F16 with as much more as their rounding may
        take where they are too small for its relative error."""
        small = max(map(least_normal, self._dtypes)) * self._largest_scale
        return Chain(self.inputs, self.step, self.cut, absolute=True, through=lambda factor: abs(factor) + small)

    def read(self, first: int, last: int, buffer: Array | None = None) -> Array:
        """Elements first..last of the candidate, as stored; in a buffer of bytes, until that is used again."""
        out = None if buffer is None else part(buffer, held_as(self.dtype), last - first)
        return read_stored(self.inputs, self.candidate, first, last, out)

    def add(self, start: int, tally: Tally, *, is_wrong: bool = False) -> None:
        """Take what was found from element `start` on; is_wrong: enough to say so of the tensor."""
        with self._lock:
            self._tallies[start] = tally
            if is_wrong:
                self._wrong = start if self._wrong is None else min(start, self._wrong)

    def is_wrong_before(self, start: int) -> bool:
        """Whether earlier elements say that the tensor is wrong: then others need not be explained. By place, not by
        time, so that what is found does not depend on threads."""
        return self._wrong is not None and self._wrong < start

    @functools.cached_property
    def tally(self) -> Tally:
        """What was found of the whole tensor, after all of it was compared."""
        whole = Tally()
        for _, tally in sorted(self._tallies.items(), key=lambda one: one[0]):
            whole.add(tally)
        return whole

    @functools.cached_property
    def turns(self) -> bool:
        """Whether an edit depends on the norms of whole rows."""
        return any(kind_of(edit).norms is not None for edit in self.step.edits)

    @functools.cached_property
    def _in_rows(self) -> bool:
        """Whether no element can be computed without its row."""
        return self.turns or any(kind_of(edit).neighbours for edit in self.step.edits)

    @functools.cached_property
    def adapters(self) -> list[int]:
        return sorted({edit.adapter for edit in self.step.edits})

    def directions(self, block: Block, before: Array, where: Array | None = None) -> list[Array]:
        """What each adapter changes, in order, and under DoRA W' itself: of elements of a block, or of all, float64."""
        states = [doubles(before if where is None or self._in_rows else before[where], self.step.base.spec.dtype)]
        for chain in self._prefixes(block):
            if where is None or self._in_rows:
                rows = states[0].reshape(-1, block.columns)
                after = rows.copy()
                chain.apply(after, block.first, rows)
                states.append(after.reshape(-1))
            else:
                states.append(self._picked(chain, block, where, states[0]))
        if where is not None and self._in_rows:
            states = [state[where] for state in states]
        along = [self.alpha * (after - before) for before, after in itertools.pairwise(states)]
        if self.turns:
            along.append(states[0] + self.alpha * (states[-1] - states[0]))
        return along

    def _picked(self, chain: Chain, block: Block, where: Array, numbers: Array) -> Array:
        at = where // block.columns, where % block.columns
        picked: Array = pick(chain, FLOATS, (block.first, block.last), at, numbers[:, None, None]).ravel()
        return picked

    def _prefixes(self, block: Block) -> Iterator[Chain]:
        """The edits of the first adapter, of the first two, ... of all."""
        for count in self.adapters[1:]:
            with self._lock:
                if count not in self._chains:
                    edits = tuple(edit for edit in self.step.edits if edit.adapter < count)
                    self._chains[count] = Chain(self.inputs, self.step._replace(edits=edits), self.cut)
            yield self._chains[count]
        yield block.chain

    def values(self, block: Block, before: Array, terms: Chain, where: Array | None = None) -> Values:
        """The values that a block should have, or its elements `where`: float64, flat. terms: the chain of
        magnitudes."""
        chain, alpha = block.chain, self.alpha
        if where is not None and not self._in_rows:
            base = doubles(before[where], self.step.base.spec.dtype)
            full, most = (
                self._picked(*each) for each in ((chain, block, where, base), (terms, block, where, abs(base)))
            )
        else:
            rows = doubles(before, self.step.base.spec.dtype).reshape(-1, block.columns)
            after, sizes = rows.copy(), abs(rows)
            norms = chain.apply(after, block.first, rows)
            terms.apply(sizes, block.first, abs(rows), known=norms)
            chosen = slice(None) if where is None else where
            base, full, most = (array.reshape(-1)[chosen] for array in (rows, after, sizes))
        most = np.maximum(most, abs(full))
        if alpha == 1:
            return Values(base, full, most)
        return Values(base, base + alpha * (full - base), abs(1 - alpha) * abs(base) + abs(alpha) * most)
