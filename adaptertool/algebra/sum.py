"""The tensors of a sum of adapters, made from theirs: by concatenation, or cut to a smaller rank after it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.algebra.factors import Reduced, in_turns, made, one_by_one, read_pair, reduced
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.codecs.tensors import read_rows, read_tensor, require_finite
from adaptertool.engine.produce import Job, Made
from adaptertool.errors import shown
from adaptertool.files.reader import Inputs
from adaptertool.numerics.lowrank import Factors
from adaptertool.numerics.rounding import Array
from adaptertool.planning.sum import Combined
from adaptertool.spec.choices import RankChoice
from adaptertool.spec.tensors import DTYPE_BITS, Ref, TensorSpec

_BLOCK = 1 << 21  # elements of B made at once


class LayerOutcome(NamedTuple):
    """What became of a layer, or of a part of it. Shares are those of algebra.factors.Reduced."""

    layer: Combined
    rank: int
    rounded: int = 0  # elements of B, or of the bias, that are not exactly what they are to be
    energy: float = 1.0
    error: float = 0.0
    storing: float = 0.0


Maker = Callable[[Combined, Inputs], Iterable[Job[LayerOutcome | None]]]


def specs(layers: Sequence[Combined], saved: Sequence[Ref]) -> list[TensorSpec]:
    """All tensors, wide dtypes first: so that all are aligned."""
    own = [spec for layer in layers for spec in layer.specs()]
    return sorted([*own, *(ref.spec for ref in saved)], key=lambda spec: -DTYPE_BITS[spec.dtype])


def jobs(
    layers: Sequence[Combined], saved: Sequence[Ref], make: Maker, inputs: Inputs
) -> Iterator[Job[LayerOutcome | None]]:
    """The jobs that make the tensors, in the order of `specs`. make: what gives the jobs of a layer."""
    for width in sorted(set(DTYPE_BITS.values()), reverse=True):
        for layer in layers:
            if DTYPE_BITS[layer.dtype] == width:
                yield from make(layer, inputs)
        for ref in saved:
            if DTYPE_BITS[ref.spec.dtype] == width:
                yield functools.partial(_copied, ref, inputs)


def _copied(ref: Ref, inputs: Inputs) -> tuple[list[Made], None]:
    require_finite(inputs, ref)
    return [Made(ref.spec, ref)], None


def concatenation(layer: Combined, inputs: Inputs) -> Iterator[Job[LayerOutcome | None]]:
    """A in one job; B in blocks of rows, since it has to be computed; the bias."""
    for number in range(len(layer.first.pairs)):
        a, b = layer.of_pair(number)
        yield functools.partial(_stacked, layer, number, a, inputs)
        step = max(1, _BLOCK // b.shape[1])
        for first in range(0, b.shape[0], step):
            yield functools.partial(_side_by_side, layer, number, b, first, min(b.shape[0], first + step), inputs)
    if (bias := layer.of_bias()) is not None:
        yield functools.partial(_bias, layer, bias, inputs)


def _stacked(layer: Combined, number: int, spec: TensorSpec, inputs: Inputs) -> tuple[list[Made], LayerOutcome]:
    """A: of each expert the rows of one adapter after those of the other."""
    parts = []
    for expert in range(layer.first.experts):
        for term in layer.terms:
            ref = term.layer.pairs[number].a
            require_finite(inputs, own := ref.rows(expert * term.layer.rank, (expert + 1) * term.layer.rank))
            if ref.spec.dtype == spec.dtype:
                parts.append(Made(spec, own))
            else:
                values = read_tensor(inputs, own, 0, own.spec.numel)
                parts.append(made(spec, rounded(values, spec.dtype), str(ref.path)))
    return parts, LayerOutcome(layer, layer.rank)


def _side_by_side(
    layer: Combined, number: int, spec: TensorSpec, first: int, last: int, inputs: Inputs
) -> tuple[list[Made], LayerOutcome]:
    """Rows of B. The experts' columns take turns, so those of one adapter stay together."""
    rows, lost = [], []
    for term in layer.terms:
        ref = term.layer.pairs[number].b
        require_finite(inputs, ref.rows(first, last))
        own = in_turns(term.layer, read_rows(inputs, ref, first, last, ref.spec.shape[1]))
        rows.append(own * term.times)
        # A power of two loses nothing, but of what is then too small for float64.
        lost.append(rows[-1] / term.times != own if term.exact and term.times else np.zeros(own.shape, bool))
    return _stored(layer, spec, np.concatenate(rows, axis=1), np.concatenate(lost, axis=1))


def _bias(layer: Combined, spec: TensorSpec, inputs: Inputs) -> tuple[list[Made], LayerOutcome]:
    total, lost = np.zeros(spec.shape), np.zeros(spec.shape, bool)
    for term in layer.terms:
        if (ref := term.layer.bias) is not None:
            require_finite(inputs, ref)
            more, before = read_tensor(inputs, ref, 0, ref.spec.numel) * term.times, total
            total = before + more
            part = total - before
            lost |= (before - (total - part)) + (more - part) != 0  # D. Knuth's two-sum: what float64 does not hold
    return _stored(layer, spec, total, lost)


def _stored(
    layer: Combined, spec: TensorSpec, values: Array, lost: Array | bool = False
) -> tuple[list[Made], LayerOutcome]:
    """lost: which of the values are rounded already."""
    stored = rounded(values, spec.dtype)
    part = made(spec, stored, f"the sum for {shown(layer.path)}")
    return [part], LayerOutcome(
        layer, layer.rank, rounded=int(np.count_nonzero((doubles(stored, spec.dtype) != values) | lost))
    )


def cut_down(layer: Combined, cut: RankChoice, inputs: Inputs) -> tuple[list[Made], LayerOutcome]:
    """The whole layer, at the rank that `cut` leaves it."""
    pairs = [joined(layer, number, inputs) for number in range(len(layer.first.pairs))]
    found = reduced(pairs, cut, [(layer.dtype, layer.dtype)] * len(pairs), balanced=False)
    if found is None:
        done = [job() for job in concatenation(layer, inputs)]
        lost = sum(told.rounded for _, told in done if told is not None)
        return [part for parts, _ in done for part in parts], LayerOutcome(layer, layer.rank, rounded=lost)
    parts = of_pairs(layer, found, f"the sum for {shown(layer.path)}")
    if (bias := layer.of_bias()) is not None:
        parts += _bias(layer, bias, inputs)[0]
    return parts, LayerOutcome(layer, found.rank, 0, found.energy, found.error, found.storing)


def of_pairs(layer: Combined, found: Reduced, where: str) -> list[Made]:
    """The tensors of the layer at another rank."""
    small = layer._replace(rank=found.rank)
    return [
        made(spec, factor, where)
        for number, (b, a) in enumerate(found.pairs)
        for spec, factor in zip(small.of_pair(number), (a, b), strict=True)
    ]


def joined(layer: Combined, number: int, inputs: Inputs) -> list[Factors]:
    """The factors of the sum for each expert, float64 (out, Σr) and (Σr, in)."""
    terms = [
        one_by_one(b * term.times, a, layer.first.experts)
        for term in layer.terms
        for b, a in (read_pair(inputs, term.layer, number),)
    ]
    return [
        (np.concatenate([b for b, _ in some], axis=1), np.concatenate([a for _, a in some]))
        for some in zip(*terms, strict=True)
    ]
