"""Blocks that the compiled kernel makes in one visit of numbers that are added to them, or with which they are
multiplied: single elements, transforms, circulant blocks, Kronecker products, gains. What it cannot do goes the way of
all other blocks (arithmetic.blocks)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.fused import joined
from adaptertool.arithmetic.requirements import shortcut_of
from adaptertool.arithmetic.survival import every_nth
from adaptertool.codecs.numbers import doubles, largest_stored
from adaptertool.codecs.tensors import read_tensor, reading_rows
from adaptertool.kinds import kind_of
from adaptertool.numerics.compiled import FUNCTIONS
from adaptertool.numerics.error_free import two_sum
from adaptertool.numerics.fused import Made
from adaptertool.numerics.fused_change import Change, Times, change
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import Ref

_PART = 1 << 17  # elements that stay in the cache
_ROUNDED = 2.0**-52  # a number that is rounded once is off by no more, relatively
_DENSE = 8  # where one in so many elements is changed, all are looked at


class Changes:
    """The changes of one tensor that are numbers of its own shape: W + t·D, W + t·(D + D'), or W + t·(W ⊙ G − W)."""

    only_exact = True  # precision fast has bytes of its own

    def __init__(self, chain: Chain, refs: Sequence[Ref], *, gain: bool) -> None:
        self._chain, self._refs, self._gain = chain, refs, gain

    @classmethod
    def of(cls, chain: Chain) -> Changes | None:
        """None where the kernel is not there, or an edit is not one that it can do."""
        step, edits = chain.step, chain.step.edits
        if f"change_{step.spec.dtype}" not in FUNCTIONS or step.base.spec.dtype != step.spec.dtype:
            return None
        if any(edit.view is not None for edit in edits):
            return None
        if len(edits) == 1 and kind_of(edits[0]).is_product and shortcut_of(edits[0]) is not None:
            return cls(chain, (), gain=False)
        kinds = [kind_of(edit) for edit in edits]
        gain, numbers = kinds[0].gains is not None, {(edit.weight, edit.scale) for edit in edits}
        roles = [kind.gains if gain else kind.adds for kind in kinds]
        if None in roles or len(edits) > (1 if gain else 2) or len(numbers) > 1 or chain.columns != 1:
            return None
        refs = [edit.factors[role] for edit, role in zip(edits, roles, strict=True) if role is not None]
        if any(ref.columns is not None or ref.spec.numel != chain.rows for ref in refs) or chain.transposed:
            return None
        return cls(chain, refs, gain=gain)

    def make(self, stored: Array, first: int, alphas: Sequence[float], out: Sequence[Array]) -> list[Made] | None:
        """As Products.make; `first` is a row of the block, or an element."""
        times, every = [self._times(alpha) for alpha in alphas], every_nth(stored.size)
        if (few := self._few(stored, first, times, out, every)) is not None:
            return few
        columns, dtype, parts = self._chain.columns, self._chain.step.spec.dtype, []
        for begin, end in self._cuts(first, first + stored.size // columns):
            cut = slice((begin - first) * columns, (end - first) * columns)
            into = [one[cut] for one in out]
            done = change(stored[cut], dtype, self._between(begin, end), times, into, (cut.start, every))
            if done is None:
                return None
            parts.append((cut.start, done))
        return [joined([(start, done[a]) for start, done in parts]) for a in range(len(alphas))]

    def _times(self, alpha: float) -> Times:
        """What the change is multiplied with."""
        edit: Edit = self._chain.step.edits[0]
        numbers = alpha, edit.weight, 1.0 if self._gain else edit.scale
        if not all(map(math.isfinite, numbers)):  # which others refuse
            return Times(math.inf)
        # Not a product of floats: two of the three may underflow, which the third may make up for
        exact = math.prod(map(Fraction, numbers), start=Fraction(1))
        try:
            number = float(exact)
        except OverflowError:
            return Times(math.inf)
        return Times(number, 0.0 if Fraction(number) == exact else _ROUNDED)

    def _cuts(self, first: int, last: int) -> list[tuple[int, int]]:
        """Rows first..last in parts: of whole rows of what is made."""
        chain, wide = self._chain, 1
        if self._refs:
            wide = max(1, chain.rows // max(1, self._refs[0].spec.shape[0] if self._refs[0].spec.shape else 1))
        step = max(1, _PART // (wide * chain.columns)) * wide
        marks = [first, *range(first // step * step + step, last, step), last]
        return list(itertools.pairwise(marks))

    def _between(self, begin: int, end: int) -> Change:
        """What is added to rows begin..end."""
        if not self._refs:
            edit = self._chain.step.edits[0]
            shortcut = shortcut_of(edit)
            assert shortcut is not None
            product, error = shortcut.rows(reading_rows(self._chain.inputs), begin, end, edit.transposed)
            return Change(np.ascontiguousarray(product).reshape(-1), error=error)
        high, *others = (read_tensor(self._chain.inputs, ref, begin, end) for ref in self._refs)
        return Change(*two_sum(high, *others)) if others else Change(high, gain=self._gain)

    def _few(
        self, stored: Array, first: int, times: Sequence[Times], out: Sequence[Array], every: int
    ) -> list[Made] | None:
        """The same where few elements are changed, of which alone something is made; None where that is not known."""
        makings = [ref.made for ref in self._refs if ref.made is not None and not ref.made.first]
        few = [making.few for making in makings if making.few is not None]
        if not few or len(few) < len(self._refs):
            return None
        dtype, read = self._chain.step.spec.dtype, reading_rows(self._chain.inputs)
        found = [some(read) for some in few]
        places = found[0][0]
        low, high = np.searchsorted(places, (first, first + stored.size)).tolist()
        if any(others is not places for others, _ in found) or (high - low) * _DENSE > stored.size:
            return None
        at, numbers = places[low:high] - first, [values[low:high] for _, values in found]
        old = stored[at]
        new = [np.empty_like(old) for _ in out]
        added = Change(*two_sum(*numbers)) if len(numbers) > 1 else Change(np.ascontiguousarray(numbers[0]))
        done = change(old, dtype, added, times, new, (1, old.size + 2))
        if done is None or not largest_stored(stored, dtype) < np.inf:
            return None
        sampled, result = np.flatnonzero(at % every == 0), []
        before = doubles(old[sampled], dtype)
        for into, some, made, (number, _) in zip(out, new, done, times, strict=True):
            into[:] = stored
            into[at] = some
            delta = number * added.high[sampled]
            kept = float(((doubles(some[sampled], dtype) - before) * delta).sum())
            result.append(Made(at[made.open], made.changed, kept, float((delta * delta).sum())))
        return result
