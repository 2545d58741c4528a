"""An adapter's layers at smaller ranks, one job for each: what `truncate` computes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from adaptertool.errors import shown
from adaptertool.factors import Reduced, made, one_by_one, read_pair, reduced, reduced_spec
from adaptertool.files.reader import Inputs
from adaptertool.formats.peft_layers import Layer, Layered
from adaptertool.production import Job, Made
from adaptertool.spec import DTYPE_BITS, Cut, Ref
from adaptertool.tensors import require_finite


class LayerSaid(NamedTuple):
    """What became of a layer: shares as in factors.Reduced; nothing is lost where the rank stays."""

    layer: Layer
    rank: int
    energy: float = 1.0
    error: float = 0.0
    storing: float = 0.0


def in_order(layered: Layered) -> Iterator[tuple[Layer | None, list[Ref]]]:
    """All tensors, wide dtypes first, so that all are aligned: those of each layer, then what is saved."""
    for width in sorted(set(DTYPE_BITS.values()), reverse=True):
        for layer in layered.layers.values():
            if refs := [ref for ref in layer.refs if DTYPE_BITS[ref.spec.dtype] == width]:
                yield layer, refs
        for module in layered.saved:
            if refs := [ref for ref in module.factors.values() if DTYPE_BITS[ref.spec.dtype] == width]:
                yield None, refs


def jobs(layered: Layered, cut: Cut, inputs: Inputs, *, balanced: bool) -> Iterator[Job[LayerSaid | None]]:
    for layer, refs in in_order(layered):
        if layer is None or not any(ref in pair for pair in layer.pairs for ref in refs):
            yield functools.partial(_copied, refs, inputs)
        else:
            yield functools.partial(_reduced, layer, refs, cut, inputs, balanced=balanced)


def _copied(refs: Sequence[Ref], inputs: Inputs) -> tuple[list[Made], None]:
    for ref in refs:
        require_finite(inputs, ref)
    return [Made(ref.spec, ref) for ref in refs], None


def _reduced(
    layer: Layer, refs: Sequence[Ref], cut: Cut, inputs: Inputs, *, balanced: bool
) -> tuple[list[Made], LayerSaid]:
    """Those of the layer's tensors that `refs` names."""
    pairs = [one_by_one(*read_pair(inputs, pair), layer.experts) for pair in layer.pairs]
    dtypes = [(pair.b.spec.dtype, pair.a.spec.dtype) for pair in layer.pairs]
    found = reduced(pairs, cut, dtypes, balanced=balanced)
    if found is None:
        return _copied(refs, inputs)[0], LayerSaid(layer, layer.rank)
    new = _made(layer, found)
    said = LayerSaid(layer, found.rank, found.energy, found.error, found.storing)
    return [new.get(ref.spec.name) or Made(ref.spec, ref) for ref in refs], said


def _made(layer: Layer, found: Reduced) -> dict[str, Made]:
    """The factors of a layer at its new rank, by key."""
    new = {}
    where = f"{layer.pairs[0].a.path}: {shown(layer.path)} at rank {found.rank}; with --balance it may fit"
    wide = layer.experts * found.rank
    for pair, (b, a) in zip(layer.pairs, found.pairs, strict=True):
        new[pair.a.spec.name] = made(reduced_spec(pair.a.spec, 0, wide, pair.a.spec.dtype), a, where)
        new[pair.b.spec.name] = made(reduced_spec(pair.b.spec, 1, wide, pair.b.spec.dtype), b, where)
    return new
