"""Blocks that the compiled kernel makes in one visit: LoRA, also several at once, in views of rows, and on tensors that
are stored transposed; and DoRA. What it cannot do goes the way of all other blocks (arithmetic.blocks)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.region import Region, choose
from adaptertool.arithmetic.requirements import near_of, shortcut_of
from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import largest_stored
from adaptertool.codecs.tensors import read_stored, reading_rows
from adaptertool.kinds import kind_of
from adaptertool.numerics.compiled import FUNCTIONS
from adaptertool.numerics.error_bound import has_few_bits
from adaptertool.numerics.fused import ROUNDING, Left, Made, Right, add_product, blend
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import Near, Ref

_UP = 1 + 2.0**-50  # more than two roundings
_KEPT = 4  # right factors of a tensor
_SAMPLED = 64  # rows of a tensor of which sums are taken, about
_ELEMENTS = 2048  # elements of a block, the same


class Mixed:
    """A tensor that another takes the place of, in part: W + α·weight·(T − W)."""

    only_exact = False  # also where precision is fast

    def __init__(self, chain: Chain, tuned: Ref, weight: float) -> None:
        self._chain, self._tuned, self._weight = chain, tuned, weight

    @classmethod
    def of(cls, chain: Chain) -> Mixed | None:
        """None where the kernel cannot."""
        edit, *others = chain.step.edits
        if others or edit.view is not None or not kind_of(edit).replaces:
            return None
        (tuned,) = edit.factors.values()
        dtypes = {spec.dtype for spec in (chain.step.base.spec, chain.step.spec, tuned.spec)}
        plain = tuned.columns is None and not edit.transposed and chain.columns == 1
        if len(dtypes) > 1 or f"blend_{tuned.spec.dtype}" not in FUNCTIONS or not plain:
            return None
        return cls(chain, tuned, edit.weight)

    def make(self, stored: Array, first: int, alphas: Sequence[float], out: Sequence[Array]) -> list[Made] | None:
        """As Products.make; `first` is an element."""
        times = [alpha * self._weight for alpha in alphas]
        if any(Fraction(a) * Fraction(self._weight) != Fraction(t) for a, t in zip(alphas, times, strict=True)):
            return None
        tuned = read_stored(self._chain.inputs, self._tuned, first, first + stored.size)
        every = max(1, stored.size // _ELEMENTS) | 1
        return blend(stored, tuned, self._tuned.spec.dtype, times, out, (first, every))


def fused_of(chain: Chain) -> Products | Mixed | None:
    """How the kernel makes the blocks of this tensor in one visit; None where it cannot."""
    if not chain.step.edits:
        return None
    return Mixed.of(chain) or Products.of(chain)


class Products:
    """The changes of one tensor, made of products. Its right factors are laid out by the first block that asks."""

    only_exact = False

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._rights: dict[tuple[int, ...], tuple[Right, float] | None] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, chain: Chain) -> Products | None:
        """None where the kernel is not there, or the tensor, or an edit of it, is not one that it can do."""
        step = chain.step
        if f"lora_{step.spec.dtype}" not in FUNCTIONS or step.base.spec.dtype != step.spec.dtype:
            return None
        for edit in step.edits:
            regular = edit.view is None or (
                isinstance(edit.view.rows, range)
                and edit.view.rows.step == 1
                and edit.view.columns == range(chain.columns)
            )
            if shortcut_of(edit) is not None:
                return None
            kind = kind_of(edit)
            normed = kind.norms is not None and kind.norms.of_product and not edit.transposed
            if not regular or not (kind.is_product or normed):
                return None
        return cls(chain)

    def make(self, stored: Array, first: int, alphas: Sequence[float], out: Sequence[Array]) -> list[Made] | None:
        """out[a] = rows from `first` on with α times the change, as stored, correctly rounded but for the elements that
        are told. None where that cannot be: then nothing in `out` counts. All flat, as stored."""
        self._chain.forget(first)
        columns, dtype = self._chain.columns, self._chain.step.spec.dtype
        count = stored.size // columns
        chosen = [choose(edit, first, first + count) for edit in self._chain.step.edits]
        ends = {0, count}
        for region in filter(None, chosen):
            ends.update(_rows(region, count))
        marks, parts = sorted(ends), []
        for low, high in itertools.pairwise(marks):
            acting = tuple(n for n, region in enumerate(chosen) if region and _acts(_rows(region, count), low, high))
            cut = slice(low * columns, high * columns)
            some, into = stored[cut], [one[cut] for one in out]
            done = self._add(acting, chosen, (first, low, high), some, alphas, into) if acting else None
            if not acting:
                if not largest_stored(some, dtype) < np.inf:
                    return None
                for one in into:
                    one[:] = some
            elif done is None:
                return None
            else:
                parts.append((low * columns, done))
        return [joined([(start, done[a]) for start, done in parts]) for a in range(len(alphas))]

    def _add(
        self,
        acting: tuple[int, ...],
        chosen: Sequence[Region | None],
        rows: tuple[int, int, int],
        stored: Array,
        alphas: Sequence[float],
        out: Sequence[Array],
    ) -> list[Made] | None:
        """Rows low..high of the block, on which the edits of these numbers act."""
        chain, (first, low, high) = self._chain, rows
        lefts, edits = [], [chain.step.edits[number] for number in acting]
        few_bits = chain.requirements.few_bits and all(map(exact_scale, edits))
        with self._lock:
            if acting not in self._rights:
                while len(self._rights) >= _KEPT:
                    del self._rights[next(iter(self._rights))]
                self._rights[acting] = self._right(acting, chosen, few_bits=few_bits)
            packed = self._rights[acting]
        if packed is None:
            return None
        length: tuple[Array, float] | None = None
        for number, edit in zip(acting, edits, strict=True):
            region, kind = chosen[number], kind_of(edit)
            assert region is not None and kind.pair is not None
            own = low - _rows(region, high)[0]
            part = slice(own, own + high - low)
            left = self._left(number, edit, region)
            if kind.norms is None:
                lefts.append(left[part] * (edit.weight * edit.scale))
            elif len(acting) > 1:
                return None
            else:
                factors = chain.factors(number, edit, region.places)
                length = np.ascontiguousarray(factors[kind.norms.length].reshape(-1)[part]), edit.weight
                lefts.append(left[part] * edit.scale)
        scaled = Left.of(np.concatenate(lefts, axis=1), few_bits=few_bits)
        if scaled is None:
            return None
        every = max(1, chain.rows // _SAMPLED) | 1
        right, off = packed
        off *= scaled.largest * _UP
        return add_product(stored, chain.step.spec.dtype, scaled, right, alphas, out, (first + low, every), length, off)

    def _left(self, number: int, edit: Edit, region: Region) -> Array:
        """The rows of the left factor that the region has."""
        near, places, pair = self._near_of(edit), region.places, kind_of(edit).pair
        assert pair is not None
        if near is not None:
            assert isinstance(places, slice)  # it is of no view
            rows: Array = near.left(reading_rows(self._chain.inputs), places.start, places.stop)
            return rows
        factors = self._chain.factors(number, edit, places)
        return factors[pair[1]].T if edit.transposed else factors[pair[0]]

    def _right(
        self, acting: tuple[int, ...], chosen: Sequence[Region | None], *, few_bits: bool
    ) -> tuple[Right, float] | None:
        """The right factors of these edits as the kernel has them, and by how much an element of their product may be
        off, for a left factor with no number above 1; None where the kernel has none like these."""
        rights, off = [], 0.0
        for number in acting:
            edit, region = self._chain.step.edits[number], chosen[number]
            near, pair = self._near_of(edit), kind_of(edit).pair
            assert region is not None and pair is not None
            if near is None:
                factors = self._chain.factors(number, edit, region.places)
                rights.append(factors[pair[0]].T if edit.transposed else factors[pair[1]])
                continue
            right, error = near.right(reading_rows(self._chain.inputs))
            rights.append(right)
            off += error * _UP
        packed = Right.of(np.concatenate(rights), few_bits=few_bits)
        return None if packed is None else (packed, off)

    def _near_of(self, edit: Edit) -> Near | None:
        """Factors that serve in the place of the edit's, where sums are in float."""
        return near_of(edit) if self._chain.step.spec.dtype in ROUNDING and not edit.transposed else None


def _rows(region: Region, count: int) -> tuple[int, int]:
    """The rows of a block that an edit acts on, from and to."""
    assert isinstance(region.index, slice)
    start, stop, _ = region.index.indices(count)
    return start, stop


def _acts(rows: tuple[int, int], low: int, high: int) -> bool:
    return rows[0] <= low and high <= rows[1]


def exact_scale(edit: Edit) -> bool:
    """Whether the scale and the weight, and so their product, are exact with few bits."""
    return has_few_bits(edit.scale) and has_few_bits(edit.weight) and has_few_bits(edit.weight * edit.scale)


def joined(parts: Sequence[tuple[int, Made]]) -> Made:
    """Parts of one block, each with the elements before it."""
    places = [made.open + start for start, made in parts]
    return Made(
        np.concatenate(places) if places else np.empty(0, np.int32),
        sum(made.changed for _, made in parts),
        sum(made.kept for _, made in parts),
        sum(made.update for _, made in parts),
    )


def buffers(dtype: str, count: int, size: int, spaces: Sequence[Array]) -> list[Array]:
    """Room for `count` results of `size` elements as stored, within buffers of bytes, and new ones where these are
    full."""
    held = BY_DTYPE[dtype].held
    length = size * held.itemsize
    places = (
        space[at : at + length].view(held)
        for space in spaces
        for at in range(0, len(space) - length + 1, max(length, 1))
    )
    found = list(itertools.islice(places, count))  # of small results there would be thousands
    return [*found, *(np.empty(size, held) for _ in range(count - len(found)))]
