"""An adapter's layers at smaller ranks, one job for each: what `truncate` computes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from adaptertool.algebra.effect import Other, Steps, effect, needs_base
from adaptertool.algebra.factors import (
    Reduced,
    as_stored,
    made,
    one_by_one,
    padded,
    read_pair,
    reduced,
    reduced_spec,
    together,
)
from adaptertool.algebra.kronecker import reduced_kronecker
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.codecs.tensors import require_finite
from adaptertool.engine.produce import Job, Made
from adaptertool.errors import shown
from adaptertool.files.reader import Inputs
from adaptertool.numerics.device import CPU, Device
from adaptertool.numerics.lowrank import Factors, singular_values
from adaptertool.numerics.spectrum import profile
from adaptertool.spec.choices import RankChoice
from adaptertool.spec.layers import Layer, Layered
from adaptertool.spec.plan import Step
from adaptertool.spec.tensors import DTYPE_BITS, Ref


class How(NamedTuple):
    """What to do with each layer, and what to find out."""

    cut: RankChoice
    balanced: bool
    values: int = 0  # singular values to tell of, of each layer
    device: Device = CPU
    steps: Steps | None = None  # with a base: what the adapter does to it, which the effect is measured on


class LayerOutcome(NamedTuple):
    """What became of a layer: shares as in factors.Reduced; nothing is lost where the rank stays."""

    layer: Layer
    rank: int
    energy: float = 1.0
    error: float = 0.0
    storing: float = 0.0
    effect: float | None = None  # as effect.effect; None where no base is looked at
    values: tuple[float, ...] = ()  # where asked for
    read: int = 0  # bytes of the base


def in_order(layered: Layered) -> Iterator[tuple[Layer | None, list[Ref]]]:
    """All tensors, wide dtypes first, so that all are aligned: those of each layer, then what is saved."""
    for width in sorted(set(DTYPE_BITS.values()), reverse=True):
        for layer in layered.layers.values():
            if refs := [ref for ref in layer.refs if DTYPE_BITS[ref.spec.dtype] == width]:
                yield layer, refs
        for module in layered.saved:
            if refs := [ref for ref in module.factors.values() if DTYPE_BITS[ref.spec.dtype] == width]:
                yield None, refs


def jobs(layered: Layered, inputs: Inputs, how: How) -> Iterator[Job[LayerOutcome | None]]:
    for layer, refs in in_order(layered):
        if layer is None or not any(ref in pair for pair in layer.pairs for ref in refs):
            yield functools.partial(_copied, refs, inputs)
        else:
            yield functools.partial(_reduced, layer, refs, inputs, how)


def _copied(refs: Sequence[Ref], inputs: Inputs) -> tuple[list[Made], None]:
    for ref in refs:
        require_finite(inputs, ref)
    return [Made(ref.spec, ref) for ref in refs], None


def _reduced(layer: Layer, refs: Sequence[Ref], inputs: Inputs, how: How) -> tuple[list[Made], LayerOutcome | None]:
    """The parts of the layer's tensors that `refs` names, at their new rank. Several jobs may share a layer: the one
    with lora_A returns its outcome too."""
    if layer.unpaired is not None:
        near, own = reduced_kronecker(layer, inputs, how.cut, balanced=how.balanced, device=how.device)
        values = profile(own, how.values) if how.values else ()
        told = LayerOutcome(layer, near.rank, near.energy, near.error, near.storing, None, values)
        return list(_made(layer, near).values()), told
    whole = [read_pair(inputs, layer, number) for number in range(len(layer.pairs))]
    pairs = [one_by_one(b, a, layer.experts) for b, a in whole]
    dtypes = [(pair.b.spec.dtype, pair.a.spec.dtype) for pair in layer.pairs]
    found = reduced(pairs, how.cut, dtypes, balanced=how.balanced, device=how.device)
    new = _repacked(layer, whole) if found is None else _made(layer, found)
    copied, _ = _copied([ref for ref in refs if ref.spec.name not in new], inputs)
    by_name = {part.spec.name: part for part in copied} | new
    parts = [by_name[ref.spec.name] for ref in refs]
    if layer.pairs[0].a not in refs:
        return parts, None
    return parts, _said(layer, found, pairs, inputs, how)


def _said(
    layer: Layer, found: Reduced | None, pairs: Sequence[Sequence[Factors]], inputs: Inputs, how: How
) -> LayerOutcome:
    values = _widest(pairs, how.values) if how.values else ()
    if found is None:
        return LayerOutcome(layer, layer.rank, effect=None if how.steps is None else 0.0, values=values)
    done, read = (None, 0) if how.steps is None else _effect(layer, found, inputs, how.steps, how.device)
    return LayerOutcome(layer, found.rank, found.energy, found.error, found.storing, done, values, read)


def _effect(layer: Layer, found: Reduced, inputs: Inputs, steps: Steps, device: Device) -> tuple[float | None, int]:
    """The effect of storing the factors as `found` has them (algebra.effect), and how many bytes of the base it took.
    With zeros the factors have the shapes of those that they replace."""
    others: dict[str, Other] = {}
    of_layer: list[Step] = []
    for pair, stored in zip(layer.pairs, found.pairs, strict=True):
        b, a = (doubles(factor, ref.spec.dtype) for factor, ref in zip(stored, (pair.b, pair.a), strict=True))
        b, a = together([padded(*factors, layer.rank) for factors in one_by_one(b, a, layer.experts)])
        others[pair.b.spec.name], others[pair.a.spec.name] = Other(pair.b, as_stored(layer, b)), Other(pair.a, a)
        of_layer += steps[pair.a.spec.name]
    return effect(inputs, of_layer, others, device), sum(step.base.spec.nbytes for step in of_layer if needs_base(step))


def _widest(pairs: Sequence[Sequence[Factors]], most: int) -> tuple[float, ...]:
    """The spectrum with the largest value, of all pairs and experts: profile, and at most so many values."""
    found = [singular_values(b, a) for experts in pairs for b, a in experts]
    values, _ = max(found, key=lambda one: (one[0].any(), one[1], one[0].max(initial=0.0)))
    return profile(values, most)


def _repacked(layer: Layer, whole: Sequence[Factors]) -> dict[str, Made]:
    """lora_B of a layer that loses nothing, where it has to be packed as PEFT does it, by key."""
    return {
        pair.b.spec.name: made(pair.b.spec, rounded(b, pair.b.spec.dtype), str(pair.b.path))
        for pair, (b, _) in zip(layer.pairs, whole, strict=True)
        if layer.grouped
    }


def _made(layer: Layer, found: Reduced) -> dict[str, Made]:
    """The factors of a layer at its new rank, by key."""
    new = {}
    where = f"{layer.pairs[0].a.path}: {shown(layer.path)} at rank {found.rank}; with --balance it may fit"
    wide = layer.experts * found.rank
    for pair, (b, a) in zip(layer.pairs, found.pairs, strict=True):
        new[pair.a.spec.name] = made(reduced_spec(pair.a.spec, 0, wide, pair.a.spec.dtype), a, where)
        new[pair.b.spec.name] = made(reduced_spec(pair.b.spec, 1, wide, pair.b.spec.dtype), b, where)
    return new
