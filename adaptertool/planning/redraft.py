"""Layers that were made of adapters, to be written in a format: what `sum`, `truncate` and `extract` hand over."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adaptertool.architectures.traits import may_be_end
from adaptertool.errors import UnsupportedError, UsageError, shown
from adaptertool.formats import BY_NAME, SAVINGS
from adaptertool.formats.gguf.format import GGUF
from adaptertool.formats.saving import Saving, WritingOptions, in_order, spec_of
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

    def draft(self, changes: Portable, dtypes: Mapping[str, str]) -> Draft:
        """The files. dtypes: by the names of tensors that were made in float64, what they are to be stored as.

        Raises UnsupportedError for what the format cannot hold.
        """
        require_names(changes, self.name)
        draft = self.saving.draft(changes, WritingOptions(as_file=self.as_file))
        require_ends_told(changes, self.name)
        if not dtypes:
            return draft
        stored = [(one, dtypes.get(one.source.spec.name, one.spec.dtype)) for one in draft.tensors]
        narrow = [one._replace(spec=spec_of(one.spec.name, dtype, one.spec.shape)) for one, dtype in stored]
        return dataclasses.replace(draft, tensors=in_order(narrow))


def require_names(changes: Portable, to: str) -> None:
    """Raises UsageError where names are those of GGUF, and the format has those of a checkpoint."""
    of_gguf = changes.adapter.format == GGUF.name and changes.config is None
    if to != GGUF.name and (changes.gguf is not None or of_gguf):
        raise UsageError(
            f"{changes.adapter.path} is read with the names that GGUF has, and {to} has others: `adaptertool convert` "
            "with the checkpoint that the GGUF model was made from as --base, and its config.json, tells them"
        )


def require_ends_told(changes: Portable, to: str) -> None:
    """Raises UsageError for a change of an embedding or a head, where a base that ties them would have both changed in
    one of the two formats, and there is no base to tell."""
    ties = SAVINGS[to].ties
    if (
        changes.config is not None
        or changes.stored
        or changes.gguf is not None
        or ties in (None, changes.adapter.ties_ends)
    ):
        return
    for change in changes.changes:
        if may_be_end(change.target):
            raise UsageError(
                f"{changes.adapter.path}: {shown(change.name)}: an embedding or a head, which are one tensor in many "
                f"models; as {to} a change of one of them would then be of {'both' if ties else 'that one alone'}. "
                "Only the base tells: `adaptertool convert` with --base"
            )


def target_at(name: str, out: Path) -> Target:
    """The format of that name. Raises UsageError where there is none, or OUT is not named as its files are."""
    if (saving := SAVINGS.get(name)) is None:
        raise UsageError(f"the format to write is {', '.join(SAVINGS)}, not {name!r}")
    as_file = saving.as_file(out)
    if as_file and out.suffix != saving.end:
        raise UsageError(f"OUT {out} is to end in {saving.end}: what is written as {name} is one file")
    return Target(name, saving, as_file)


def target_of(to: str | None, own: str, out: Path) -> Target | None:
    """The format to write, where it is asked for, or where that of the inputs has no config to write; None: the inputs'
    own.

    own: the format of the inputs. Raises UsageError as `target_at` does, UnsupportedError where it is not written.
    """
    if to is not None:
        return target_at(to, out)
    if BY_NAME[own].write is not None:
        return None
    if own not in SAVINGS:
        raise UnsupportedError(f"adapters of the format {own} are read, and not written: choose another (--to)")
    return target_at(own, out)


class Made(NamedTuple):
    """A layer that was made: the names of its tensors are those of `layer`.

    bias: the key of what is added to the layer's bias
    """

    layer: Layer
    rank: int
    scale: float
    bias: str | None = None


def of_layers(
    adapter: Adapter, layers: Iterable[Made], saved: Sequence[Module], tensors: Mapping[str, Ref]
) -> Portable:
    """What layers change. tensors: those that were made, by the names that the layers have for them; saved: what is
    kept as it was."""
    changes = [change for one in layers for change in _changes(one, tensors)]
    kept = [
        module._replace(factors={role: tensors[ref.spec.name] for role, ref in module.factors.items()})
        for module in saved
    ]
    return Portable(adapter=adapter, changes=(*changes, *kept))


def _changes(one: Made, tensors: Mapping[str, Ref]) -> Iterable[Module]:
    """The changes of a layer. Of an attention, or a parameter, as one of what it is called, which writers refuse."""
    layer = one.layer
    (a, b), *more = layer.pairs
    factors, kind = {A: tensors[a.spec.name], B: tensors[b.spec.name]}, LORA.name
    if (m := layer.magnitude) is not None:
        role, kind = (SCALE, DORA_SCALE.name) if m.spec.name.endswith(SCALE) else (MAGNITUDE, DORA.name)
        factors[role] = tensors[m.spec.name]
    target = layer.path if layer.is_parameter else f"{layer.path}.{'in_proj_weight' if more else 'weight'}"
    embedding = True if a.spec.name.endswith("lora_embedding_A") else None
    yield Module(layer.path, target, kind, factors, one.scale, one.rank, transposed=embedding, layer=layer.path)
    if one.bias is not None:
        bias = {BIAS: tensors[one.bias]}
        yield Module(layer.path, f"{layer.path}.bias", OFFSET.name, bias, one.scale, layer=layer.path)
