"""Adapters combined by a method (methods), layer by layer: on their factors, as PEFT does it, or on their changes.

On factors A and B are combined apart, each weighted by the root of |weight·scale|, with its sign on A. The product of
two such sums has cross terms, Bᵢ·Aⱼ: it is not the sum of the changes, and how far it is from that is measured.
On changes s·B·A is made in blocks of rows, as often as it is asked for, and the leading part of what the method makes
of these is stored: nothing of the size out × in is held.
Source: `add_weighted_adapter` of PEFT 0.21.2, whose names these are ("..._svd": on changes).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from adaptertool.algebra.factors import at_rank, made, one_by_one, read_pair
from adaptertool.algebra.sum import LayerOutcome, joined, of_pairs
from adaptertool.codecs.difference import LARGEST
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.engine.produce import Made
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.methods import METHOD_BY_NAME, Place
from adaptertool.numerics.held import Held, Room, Single, narrowed
from adaptertool.numerics.lowrank import Factors, kept, svd_of_product
from adaptertool.numerics.randomized_svd import Leading, leading
from adaptertool.numerics.rounding import Array
from adaptertool.numerics.top_k import Band, Found, Part, Parts, band
from adaptertool.planning.sum import Combined
from adaptertool.spec.choices import Mix, RankChoice

_BLOCK = 1 << 18  # elements of a change made at once


def on_factors(layer: Combined, mix: Mix, inputs: Inputs) -> tuple[list[Made], LayerOutcome]:
    """The tensors of the whole layer. `error`: how far its product, as stored, is from the weighted sum of the changes,
    relative to that."""
    parts, error = list[Made](), 0.0
    for number in range(len(layer.first.pairs)):
        pairs = [read_pair(inputs, term.layer, number) for term in layer.terms]
        roots = [math.sqrt(abs(term.times)) for term in layer.terms]
        signed = [math.copysign(root, term.times) for root, term in zip(roots, layer.terms, strict=True)]
        b = _whole([b for b, _ in pairs], roots, mix, f"{layer.path}/{number}/B")
        a = _whole([a for _, a in pairs], signed, mix, f"{layer.path}/{number}/A")
        stored = [rounded(factor, layer.dtype) for factor in (a, b)]
        parts += [made(spec, own, _where(layer)) for spec, own in zip(layer.of_pair(number), stored, strict=True)]
        a, b = (doubles(own, layer.dtype).reshape(factor.shape) for own, factor in zip(stored, (a, b), strict=True))
        error = max(error, _apart(joined(layer, number, inputs), one_by_one(b, a, layer.first.experts)))
    return parts, LayerOutcome(layer, layer.rank, error=error)


def _whole(factors: Sequence[Array], weights: Sequence[float], mix: Mix, name: str) -> Array:
    """Factors of one shape, combined."""
    method, place = METHOD_BY_NAME[mix.method], Place(name, 0, factors[0].size)
    changes = []
    for number, factor in enumerate(factors):
        flat = factor.reshape(-1)
        stay = _band(mix, number, flat.size, lambda function, flat=flat: [function(flat)])
        changes.append(method.thinned(flat, mix.settings, place, number, stay, 0))
    together: Array = method.combine(np.zeros(factors[0].size), changes, weights, mix.settings, None)
    return together.reshape(factors[0].shape)


def _band(mix: Mix, source: int, size: int, parts: Parts) -> Band | None:
    """Which elements of a factor, or of a change, stay; None: all that the method does not drop by chance."""
    method = METHOD_BY_NAME[mix.method]
    skipped, count = method.counts(mix.settings, source, size)
    return band(parts, skipped, count) if method.trims and count < size else None


def _apart(wanted: Sequence[Factors], found: Sequence[Factors]) -> float:
    """‖Σ − B·A‖/‖Σ‖ in Frobenius norm, of the worst expert, from the factors alone; 1 where only Σ is 0."""
    worst = 0.0
    for (b, a), (other_b, other_a) in zip(wanted, found, strict=True):
        whole = svd_of_product(b, a)
        rest = svd_of_product(np.concatenate([b, -other_b], axis=1), np.concatenate([a, other_a]))
        norms = [float(np.linalg.norm(svd.values)) for svd in (rest, whole)]
        if norms[1]:
            worst = max(worst, math.ldexp(norms[0] / norms[1], rest.exponent - whole.exponent))
        elif norms[0]:
            worst = max(worst, 1.0)
    return worst


class Mixture:
    """What a method makes of changes B·A of one shape, as a Matrix (numerics.randomized_svd)."""

    def __init__(
        self, factors: Sequence[Factors], weights: Sequence[float], mix: Mix, name: str, where: str = ""
    ) -> None:
        self._factors, self._weights, self._mix, self.name, self._where = factors, weights, mix, name, where
        self._method = METHOD_BY_NAME[mix.method]
        self.shape = len(factors[0][0]), factors[0][1].shape[1]
        self._step = max(1, _BLOCK // max(1, self.shape[1]))

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """The blocks of the mixture, (first row, rows), float64 (n, in). Raises NonFiniteError where a square
        overflows."""
        high, wide = self.shape
        for number, first in enumerate(range(0, high, self._step)):
            place = Place(self.name, first * wide, min(self._step, high - first) * wide)
            changes = [
                self._method.thinned(
                    self._rows(source, first), self._mix.settings, place, source, self._bands[source], number
                )
                for source in range(len(self._factors))
            ]
            rows = self._method.combine(np.zeros(place.size), changes, self._weights, self._mix.settings, None)
            if not np.abs(rows).max() <= LARGEST:
                raise NonFiniteError(f"{self._where}: the square of what it changes is no float64")
            yield first, rows.reshape(-1, wide)

    def singles(self, out: Array | None) -> Iterator[Single]:
        return narrowed(self.blocks(), out)

    def _rows(self, source: int, first: int) -> Array:
        b, a = self._factors[source]
        rows: Array = b[first : first + self._step] @ a
        return rows.reshape(-1)

    def _parts(self, source: int, function: Callable[[Part], Found]) -> Iterator[Found]:
        for first in range(0, self.shape[0], self._step):
            yield function(self._rows(source, first))

    @functools.cached_property
    def _bands(self) -> list[Band | None]:
        size = self.shape[0] * self.shape[1]
        return [_band(self._mix, one, size, functools.partial(self._parts, one)) for one in range(len(self._factors))]


def on_changes(layer: Combined, mix: Mix, cut: RankChoice, inputs: Inputs) -> tuple[list[Made], LayerOutcome]:
    """The whole layer: of each matrix the leading part, all of the same rank, found and stored."""
    mixtures = [_mixtures(layer, number, mix, inputs) for number in range(len(layer.first.pairs))]
    found = [[_leading(one, cut) for one in some] for some in mixtures]
    rank = max(min(kept(one.svd.values, cut), one.available) for some in found for one in some)
    svds = [
        [
            (have if have.available >= min(rank, *one.shape) else _leading(one, RankChoice(rank=rank))).svd
            for one, have in zip(*both, strict=True)
        ]
        for both in zip(mixtures, found, strict=True)
    ]
    reduced = at_rank(svds, rank, [(layer.dtype, layer.dtype)] * len(svds), balanced=False)
    said = LayerOutcome(layer, rank, energy=reduced.energy, error=reduced.error, storing=reduced.storing)
    return of_pairs(layer, reduced, _where(layer)), said


def _leading(mixture: Mixture, cut: RankChoice) -> Leading:
    with Held(mixture, Room()) as held:
        return leading(held, cut, mixture.name)


def _mixtures(layer: Combined, number: int, mix: Mix, inputs: Inputs) -> list[Mixture]:
    """The mixture of each expert of pair `number`."""
    terms = [
        one_by_one(b * term.layer.scale, a, layer.first.experts)
        for term in layer.terms
        for b, a in (read_pair(inputs, term.layer, number),)
    ]
    weights = [term.times / term.layer.scale if term.times else 0.0 for term in layer.terms]
    return [
        Mixture(some, weights, mix, f"{layer.path}/{number}/{expert}", _where(layer))
        for expert, some in enumerate(zip(*terms, strict=True))
    ]


def _where(layer: Combined) -> str:
    return f"the mixture for {shown(layer.path)}"
