"""Layers that were made of adapters, to be written in a format: what `sum`, `truncate` and `extract` hand over."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.errors import UnsupportedError, UsageError
from adaptertool.formats import BY_NAME, SAVINGS
from adaptertool.formats.saving import Saving, WritingOptions, dtype_of, in_order, spec_of
from adaptertool.kinds.dora import DORA, MAGNITUDE
from adaptertool.kinds.dora_scale import DORA_SCALE, SCALE
from adaptertool.kinds.lora import LORA, A, B
from adaptertool.kinds.offset import BIAS, OFFSET
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.layers import Layer
from adaptertool.spec.portable import Draft, Portable
from adaptertool.spec.tensors import Ref


class Target(NamedTuple):
    """A format, and where it is written."""

    name: str
    saving: Saving
    as_file: bool

    @property
    def weights(self) -> str:
        """The name of the file of tensors; "" where OUT is that file."""
        return "" if self.as_file else self.saving.weights


class Made(NamedTuple):
    """A layer that was made: the names of its tensors are those of `layer`.

    bias: the key of what is added to the layer's bias
    """

    layer: Layer
    rank: int
    scale: float
    bias: str | None = None


def target_of(to: str | None, own: str, out: Path) -> Target | None:
    """The format to write, where it is asked for, or where that of the inputs is written in no other way; None: as
    ever.

    own: the format of the inputs. Raises UsageError for a format that is not there, or an OUT of another name.
    """
    name = to or (own if BY_NAME[own].write is None else None)
    if name is None:
        return None
    if (saving := SAVINGS.get(name)) is None:
        if to is None:
            raise UnsupportedError(f"adapters of the format {own} are read, and not written: choose another (--to)")
        raise UsageError(f"the format to write is {', '.join(SAVINGS)}, not {name!r}")
    as_file = saving.as_file(out)
    if as_file and not saving.weights and out.suffix != saving.end:
        raise UsageError(f"OUT {out} is to end in {saving.end}: what is written as {name} is one file")
    return Target(name, saving, as_file)


def drafted_as(
    target: Target,
    adapter: Adapter,
    layers: Iterable[Made],
    saved: Sequence[Module],
    tensors: Mapping[str, Ref],
    config: Mapping[str, Any] | None = None,
) -> Draft:
    """The files. tensors: those that were made, by the names that the layers have for them. Raises UnsupportedError for
    what the format cannot hold."""
    layers = list(layers)
    changes = [change for made in layers for change in _changes(made, tensors)]
    changes += [
        module._replace(factors={role: tensors[ref.spec.name] for role, ref in module.factors.items()})
        for module in saved
    ]
    found = Portable(adapter=adapter, changes=tuple(changes), config=config)
    draft = target.saving.draft(found, WritingOptions(as_file=target.as_file))
    # Factors that were made of stored ones, in float64, are stored as those are
    narrow = {ref.spec.name: dtype_of(ref) for made in layers for ref in made.layer.refs if ref.made is not None}
    if not narrow:
        return draft
    named = [(one, narrow.get(one.source.spec.name, one.spec.dtype)) for one in draft.tensors]
    rest = [one._replace(spec=spec_of(one.spec.name, dtype, one.spec.shape)) for one, dtype in named]
    return dataclasses.replace(draft, tensors=in_order(rest))


def _changes(made: Made, tensors: Mapping[str, Ref]) -> Iterable[Module]:
    """The changes of a layer. Of an attention, or a parameter, as one of what it is called, which writers refuse."""
    layer = made.layer
    (a, b), *more = layer.pairs
    factors, kind = {A: tensors[a.spec.name], B: tensors[b.spec.name]}, LORA.name
    if (m := layer.magnitude) is not None:
        role, kind = (SCALE, DORA_SCALE.name) if m.spec.name.endswith(SCALE) else (MAGNITUDE, DORA.name)
        factors[role] = tensors[m.spec.name]
    target = layer.path if layer.is_parameter else f"{layer.path}.{'in_proj_weight' if more else 'weight'}"
    embedding = True if a.spec.name.endswith("lora_embedding_A") else None
    yield Module(
        layer.path, target, kind, factors, made.scale, made.rank, transposed=embedding, grouped=layer.grouped,
        layer=layer.path,
    )  # fmt: skip
    if made.bias is not None:
        bias = {BIAS: tensors[made.bias]}
        yield Module(layer.path, f"{layer.path}.bias", OFFSET.name, bias, made.scale, layer=layer.path)
