"""Stretches of a file with many small tensors, each changed by LoRA: read, made and written at once, for a call costs
more than the arithmetic of one. A tensor that the kernel cannot make so goes the way of all others
(arithmetic.blocks), by itself."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

import numpy as np

from adaptertool.arithmetic.block import blocks_of, part
from adaptertool.arithmetic.blocks import compute
from adaptertool.arithmetic.fused import buffers, exact_scale
from adaptertool.arithmetic.tiling import matrix_of
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs import BY_DTYPE, F16
from adaptertool.codecs.tensors import as_bytes
from adaptertool.files.reader import Inputs
from adaptertool.kinds import KINDS
from adaptertool.numerics.fused import MOST_ALPHAS
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.small import PRODUCT, STORED, TENSOR, add_products, can
from adaptertool.spec.plan import EDITS_ALONE, Step
from adaptertool.spec.tally import Tally, sums
from adaptertool.spec.tensors import Ref

STRETCH = 1 << 20  # bytes, of weights or of factors
SMALL = STRETCH // 2  # bytes of the largest tensor: of such there are several in a stretch

# Without the function of the class itself, which takes three times as long: there may be hundreds of thousands
_new_tally = functools.partial(tuple.__new__, Tally)

_Form = tuple[str, tuple[int, ...]]  # dtype, shape

# The roles of B and A in kinds whose change is their product
_PAIRS = {kind.name: kind.pair for kind in KINDS if kind.is_product and kind.pair is not None}
# Of the dtypes that the kernel takes factors of, whether products of them may be exact in float64, and sums
_FEW_BITS = {dtype: BY_DTYPE[dtype].digits <= F16.digits for dtype in ("BF16", "F16", "F32")}


class Product(NamedTuple):
    """scale·left @ right, of factors as they are stored."""

    roles: tuple[str, str]  # of right and left
    stored: tuple[int, int]  # as numerics.small.STORED has it
    rank: int
    transposed: bool
    scale: float


class Small(NamedTuple):
    """How the kernel makes a tensor beside others: the same of all whose steps are of one form."""

    rows: int
    columns: int
    few_bits: bool
    products: tuple[Product, ...]  # of each edit
    size: int  # bytes of their factors


@dataclass(slots=True)
class Stretch:
    """Bytes that lie one after another in a file of the base and in the outputs: tensors of one dtype that are edited,
    and between them some that stay as they are."""

    ref: Ref  # of the first
    target: int  # its offset in the outputs
    size: int = 0
    factors: int = 0  # bytes
    steps: list[Step] = field(default_factory=list)  # of all tensors, in their order
    edited: list[tuple[Step, Small]] = field(default_factory=list)
    copied: list[tuple[int, int]] = field(default_factory=list)  # from and to

    def takes(self, step: Step, small: Small | None) -> bool:
        """Whether this is the next tensor, and there was room: then it is part of it. small: if it is edited"""
        spec, target, base, *_ = step
        begin, end, first = self.size, self.size + spec.nbytes, self.ref
        beside = base.offset == first.offset + begin and target == self.target + begin
        if not beside or end > STRETCH or (base.path is not first.path and base.path != first.path):
            return False
        if small is None:
            self.copied.append((begin, end))
        else:
            dtype, factors = base.spec.dtype, self.factors + small.size
            if dtype != first.spec.dtype or begin % BY_DTYPE[dtype].held.itemsize or factors > STRETCH:
                return False
            self.factors = factors
            self.edited.append((step, small))
        self.steps.append(step)
        self.size = end
        return True


def small_of(step: Step) -> Small | None:
    """How the tensor is made as part of a stretch, and all others of its form; None where it is large, not edited by
    LoRA alone, or there is no kernel."""
    spec, _, stored, edits = step[:4]
    base = stored.spec
    if not edits or not 0 < base.nbytes <= SMALL or (base.dtype, base.nbytes) != (spec.dtype, spec.nbytes):
        return None
    if stored.made is not None or step[4:] != EDITS_ALONE or not can(base.dtype):
        return None
    products, few_bits, size = list[Product](), True, 0
    for edit in edits:
        pair = _PAIRS.get(edit.kind)
        if pair is None or edit.view is not None or not edit.weight:
            return None
        b, a = edit.factors[pair[0]], edit.factors[pair[1]]
        rank, exact = _form(base.shape, b.spec[1:3], a.spec[1:3], edit.transposed)
        if not rank or a.columns is not None or b.columns is not None:
            return None
        few_bits = few_bits and exact and exact_scale(edit)
        right, left = pair if edit.transposed else pair[::-1]
        stored_as = STORED[edit.factors[right].spec.dtype], STORED[edit.factors[left].spec.dtype]
        products.append(Product((right, left), stored_as, rank, edit.transposed, edit.weight * edit.scale))
        size += a.spec.nbytes + b.spec.nbytes
    return Small(*matrix_of(base.shape), few_bits, tuple(products), size)


@functools.lru_cache(1024)  # most products have the form of another
def _form(weight: tuple[int, ...], b: _Form, a: _Form, transposed: bool) -> tuple[int, bool]:
    """The rank of a product of factors of such dtypes and shapes, 0 where the kernel cannot add it to a weight of that
    shape; and whether it may be exact in float64."""
    (rows, columns), rank = matrix_of(weight), a[1][0]
    (of_right, right), (of_left, left) = (b, a) if transposed else (a, b)
    few_bits = _FEW_BITS.get(of_right), _FEW_BITS.get(of_left)
    if math.prod(right) != rank * columns or math.prod(left) != rank * rows or None in few_bits:
        return 0, False
    return rank, all(few_bits)


def compute_stretch(
    inputs: Inputs, stretch: Stretch, alphas: Sequence[float], space: Workspace, *, exact: bool
) -> Iterator[tuple[memoryview, list[Tally]]]:
    """The bytes of all tensors, first as they were, without tallies; then for each α, which is not 0, as
    `blocks.compute` makes them, and the tallies of those that are edited.

    Bytes are valid until the next are taken. Raises NonFiniteError."""
    held = BY_DTYPE[stretch.ref.spec.dtype].held
    count = -(-stretch.size // held.itemsize)
    space.fit(count)
    stored = part(space.stored, held, count)
    content = as_bytes(stored)[: stretch.size]
    inputs.read_into(stretch.ref.path, stretch.ref.offset, content)
    yield content, []
    tensors, products, factors = _described(inputs, stretch, held.itemsize)
    room = space.rounded, space.after, space.before, space.delta, space.mix
    for first in range(0, len(alphas), MOST_ALPHAS):
        some = alphas[first : first + MOST_ALPHAS]
        out = buffers(stretch.ref.spec.dtype, len(some), count, room)
        changes = add_products(stored, stretch.ref.spec.dtype, tensors, products, factors, some, out)
        tallies = [
            list(map(_new_tally, zip(changed, repeat(0), repeat(0), *both, strict=False)))
            for changed, kept, update in zip(*(numbers.T.tolist() for numbers in changes), strict=True)
            for both in [zip(*map(sums, kept, update), strict=True)]
        ]
        for number in np.flatnonzero(changes.changed[:, 0] < 0).tolist():
            for a, tally in enumerate(_by_itself(inputs, stretch, number, some, out, exact=exact)):
                tallies[a][number] = tally
        for one, own in zip(out, tallies, strict=True):
            data = as_bytes(one)[: stretch.size]
            for begin, end in stretch.copied:
                data[begin:end] = content[begin:end]
            yield data, own


def _described(inputs: Inputs, stretch: Stretch, item: int) -> tuple[Array, Array, Array]:
    """The tensors and their products, as the kernel is told of them, and the bytes of all factors."""
    smalls = list({id(small): small for _, small in stretch.edited}.values())
    numbers = {id(small): number for number, small in enumerate(smalls)}
    each = [numbers[id(small)] for _, small in stretch.edited]
    one_of_each = [(0, *small[:2], len(small.products), small.few_bits) for small in smalls]
    tensors = np.array(one_of_each, TENSOR)[each]
    tensors["at"] = [(step.base.offset - stretch.ref.offset) // item for step, _ in stretch.edited]
    products = np.array([(0, 0, *one.stored, *one[2:]) for small in smalls for one in small.products], PRODUCT)
    ends = [0, *itertools.accumulate(len(small.products) for small in smalls)]
    products = products[[at for number in each for at in range(ends[number], ends[number + 1])]]
    factors = [
        edit.factors[role]
        for step, small in stretch.edited
        for edit, product in zip(step.edits, small.products, strict=True)
        for role in product.roles
    ]
    content, begins = inputs.read_parts(factors)
    products["right"], products["left"] = begins[::2], begins[1::2]
    return tensors, products, np.frombuffer(content, np.uint8)


def _by_itself(
    inputs: Inputs, stretch: Stretch, number: int, alphas: Sequence[float], out: Sequence[Array], *, exact: bool
) -> list[Tally]:
    """Make one tensor of a stretch as all others are made; returns its tally for each α."""
    (step, _), tallies = stretch.edited[number], list[Tally]()
    begin = step.base.offset - stretch.ref.offset
    (block,) = blocks_of(inputs, step)
    results = compute(inputs, block, alphas, Workspace(), exact=exact, tallies=tallies)
    for one, data in zip(out, results, strict=True):
        as_bytes(one)[begin : begin + len(data)] = data
    return tallies
