"""What a layer makes of its inputs on each path, against the exact value and each other.

A layer is y = x·Wᵀ for a weight (out, in), of which each block of rows gives some of the outputs; y = x·W for one that
is stored (in, out), where the products of its blocks are summed; or a row of an embedding, looked up. A convolution
counts as its matrix, applied to one patch; of fused experts each is a layer of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from adaptertool.arithmetic.block import Block
from adaptertool.arithmetic.region import Region, choose
from adaptertool.arithmetic.tiling import matrix
from adaptertool.errors import NonFiniteError, shown
from adaptertool.fidelity.closeness import Closeness
from adaptertool.fidelity.inference import (
    Inner,
    energy,
    held,
    inner_of,
    low_rank,
    powers,
    with_dora,
    with_lora,
    working,
)
from adaptertool.fidelity.model import rounding, summing
from adaptertool.fidelity.paths import EXACTLY, Beside, Norms, Variants, is_looked_up
from adaptertool.fidelity.probe import Probe
from adaptertool.files.reader import Inputs
from adaptertool.kinds import kind_of
from adaptertool.kinds.lora import A, B
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.statistics import column_sums
from adaptertool.reports.drift import Distance
from adaptertool.spec.plan import Edit, Step

_RECENT = 16  # products that are kept: a tensor may hold hundreds of experts
_TOGETHER = 1 << 18  # outputs of a path that are finished at once: a block has few, and each of its steps costs a call

Weights = Mapping[str, tuple[Array, Norms]]


class Outputs:
    """Sums over the outputs of one tensor's layers, block by block in order."""

    def __init__(self, step: Step, variants: Variants, paths: Sequence[str], x: Array | None) -> None:
        self._variants, self._paths, self._dtype = variants, paths, step.spec.dtype
        self._name, (self._rows, self._columns) = step.spec.name, matrix(step)
        turned = any(edit.transposed for edit in step.edits if kind_of(edit).pair)
        self._period = step.spec.shape[-2] if turned and x is not None else 0  # rows of one layer that is stored so
        self._x = None if x is None else held(x, self._dtype)
        self._wide = None if self._x is None else self._x.astype(np.float64)
        self._power = np.ones(1) if self._x is None else powers(self._x, 0)
        self._used = np.empty(0, working(self._dtype))  # a buffer for a weight that inputs are multiplied with
        pairs = [(path, EXACTLY) for path in paths] + list(itertools.combinations(paths, 2))
        self._pairs = {pair: Closeness() for pair in pairs}
        self._variance = dict.fromkeys((*paths, EXACTLY), 0.0)
        self._sums: dict[str, Array] = {}
        self._norms: dict[str, Norms] = {}
        self._inners: dict[tuple[str, int], tuple[Array, Inner]] = {}
        self._waiting: list[tuple[int, Mapping[str, Array], Mapping[str, Norms]]] = []  # first row, products, norms
        self.count = self._rows if x is None else len(x)

    @classmethod
    def of(cls, inputs: Inputs, step: Step, variants: Variants, probe: Probe, paths: frozenset[str]) -> Outputs | None:
        """The outputs of the layer that a tensor makes; None where no inputs were recorded for it."""
        low = [edit for edit in step.edits if kind_of(edit).pair]
        chosen = [path for path in variants.paths if path in paths]
        if is_looked_up(low[0]):
            return cls(step, variants, chosen, None)
        columns = matrix(step)[1]
        x = probe.inputs(inputs, step.spec.name, step.spec.shape[-2] if low[0].transposed else columns)
        return None if x is None else cls(step, variants, chosen, x)

    def add(self, block: Block, base: Array, exact: Array, weights: Weights) -> None:
        """base: W; exact: W + Δ; weights: those of each path. All of the block's rows, contiguous float64."""
        if self._period:
            squares, touched = np.square(exact), exact != base
            numbers = squares, squares * touched, touched
            begin = block.first
            while begin < block.last:  # layer by layer
                end = min(block.last, (begin // self._period + 1) * self._period)
                cut = slice(begin - block.first, end - block.first)
                inside = slice(begin % self._period, (end - 1) % self._period + 1)
                self._count([part[cut].sum(1) for part in numbers], self._power[inside])
                self._sum(exact[cut], {path: (w[cut], norms) for path, (w, norms) in weights.items()}, inside)
                if end % self._period == 0:
                    self._finish(self._sums, self._norms, end - self._period, end)
                    self._sums = {}
                begin = end
            return
        self._count(column_sums(base, exact), self._power)
        if self._x is None or self._wide is None:
            products = {EXACTLY: exact} | {path: w.astype(working(self._dtype)) for path, (w, _) in weights.items()}
        else:
            products = {EXACTLY: self._wide @ exact.T}
            products |= {path: self._x @ self._as_used(w).T for path, (w, _) in weights.items()}
        self._waiting.append((block.first, products, {path: norms for path, (_, norms) in weights.items()}))
        first = self._waiting[0][0]
        if self._x is None or block.last == self._rows or (block.last - first) * len(self._x) >= _TOGETHER:
            self._finish_waiting(block.last)

    def _finish_waiting(self, last: int) -> None:
        """The outputs of all rows up to `last` of which the products are there."""
        waiting, self._waiting = self._waiting, []
        (first, products, norms), *others = waiting
        if others:
            products = {path: np.concatenate([own[path] for _, own, _ in waiting], axis=1) for path in products}
            norms = {path: _joined([own[path] for _, _, own in waiting]) for path in norms}
        self._finish(products, norms, first, last)

    def _as_used(self, weight: Array) -> Array:
        """The weight in what is computed with, until the next is asked for."""
        if self._used.size < weight.size:
            self._used = np.empty(weight.size, self._used.dtype)
        used = self._used[: weight.size].reshape(weight.shape)
        used[:] = weight
        return used

    def _sum(self, exact: Array, weights: Weights, inside: slice) -> None:
        assert self._x is not None and self._wide is not None
        x = self._x[:, inside]
        products = {EXACTLY: self._wide[:, inside] @ exact}
        products |= {path: x @ self._as_used(w) for path, (w, _) in weights.items()}
        for path, product in products.items():
            self._sums[path] = self._sums[path] + product if path in self._sums else product
        self._norms = {path: norms for path, (_, norms) in weights.items()}

    def _count(self, sums: Sequence[Array], power: Array) -> None:
        """The variance that comes from rounded weights, and from sums of products with them.

        sums: for each of a layer's inputs the squares of W + Δ, those where Δ is not 0, and how many these are.
        """
        squares, moved, touched = (float((part * power).sum()) for part in sums)
        rounded = rounding(self._dtype, moved, touched)
        summed = summing(self._dtype, 0 if self._x is None else self._x.shape[1], squares)
        for path in self._paths:
            self._variance[path] += self._variants.roundings(path) * rounded + summed

    def _finish(self, products: Mapping[str, Array], norms: Mapping[str, Norms], first: int, last: int) -> None:
        """The outputs of rows first..last, or of a whole layer that is stored (in, out)."""
        ends = {EXACTLY: products[EXACTLY]}
        for path in self._paths:
            y = held(products[path], self._dtype)
            if self._x is not None:
                self._variance[path] += rounding(self._dtype, energy(y), y.size)
            if (beside := self._variants.beside(path)) is not None:
                self._apply(path, beside, y, norms[path], first, last)
            if not np.isfinite(y).all():
                raise NonFiniteError(
                    f"{shown(self._name)}: outputs of the path '{path}' are beyond the range of {self._dtype}"
                )
            ends[path] = y.astype(np.float64)
        for (one, other), closeness in self._pairs.items():
            closeness.add(ends[one], ends[other])

    def _apply(self, path: str, beside: Beside, y: Array, norms: Norms, first: int, last: int) -> None:
        """Add to y, in place, what the edits beside the weight make of the inputs."""
        for number, edit in enumerate(beside.edits):
            chosen = choose(edit, first, last)
            if chosen is None:
                continue
            factors = beside.low.factors(number, edit, chosen.places)
            index = self._index(chosen)
            change = low_rank(self._inner(path, number, factors[A]), factors[B], self._dtype)
            y[index], variance = self._with(edit, y[index], change, factors, norms.get(number))
            self._variance[path] += variance

    def _inner(self, path: str, number: int, a: Array) -> Inner:
        """What A makes of the inputs: the same for all blocks that have the same A."""
        known = self._inners.get((path, number))
        if known is None or known[0] is not a:
            if len(self._inners) >= _RECENT:
                self._inners.clear()
            known = self._inners[path, number] = a, inner_of(self._x, a, self._dtype)
        return known[1]

    def _index(self, chosen: Region) -> tuple[slice | list[int], slice | list[int]]:
        """Which of y the edit acts on."""
        if self._x is None:
            return chosen.index, chosen.columns
        return slice(None), chosen.columns if self._period else chosen.index

    def _with(
        self, edit: Edit, y: Array, change: tuple[Array, Array], factors: Mapping[str, Array], norm: Array | None
    ) -> tuple[Array, float]:
        if (norms := kind_of(edit).norms) is None:
            return with_lora(y, change, edit.scale * edit.weight, self._dtype)
        assert norm is not None
        vectors = factors[norms.length].reshape(-1), norm.reshape(-1)
        return with_dora(y, change, edit.scale, self._dtype, *vectors, edit.weight, looked_up=self._x is None)

    def report(self) -> tuple[Distance, ...]:
        same = self._variants.same_formula
        return tuple(
            closeness.report(one, other, self._variance[one] + self._variance[other] if same(one, other) else None)
            for (one, other), closeness in self._pairs.items()
        )


def _joined(norms: Sequence[Norms]) -> Norms:
    """Those of blocks one after the other, for each edit."""
    edits = dict.fromkeys(edit for own in norms for edit in own)
    return {edit: np.concatenate([own[edit] for own in norms if edit in own]) for edit in edits}
