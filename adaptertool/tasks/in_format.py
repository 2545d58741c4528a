"""What `sum`, `truncate` and `extract` make, written in another format than their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from adaptertool.algebra import extract, truncate
from adaptertool.algebra import sum as summation
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats.saving import dtype_of
from adaptertool.kinds import FULL, LORA
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.lora import A, B
from adaptertool.output.adapter import AdapterJob
from adaptertool.planning.extract import FACTORS, SAVED, Choice
from adaptertool.planning.redraft import Made, Target, of_layers
from adaptertool.planning.sum import Combined
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.choices import RankChoice
from adaptertool.spec.layers import Layered
from adaptertool.spec.portable import Portable
from adaptertool.spec.tensors import Ref

Said = TypeVar("Said")
# (tensors that were made, by name; what the jobs have said, None before they begin) -> what they change
Changes = Callable[[Mapping[str, Ref], Sequence[Said] | None], Portable]


def in_format(
    output: AdapterJob[Said], target: Target, changes: Changes[Said], dtypes: Mapping[str, str]
) -> AdapterJob[Said]:
    """The same, to be written in a format. dtypes: as for `Target.draft`."""
    return dataclasses.replace(
        output,
        weights=target.weights,
        redraft=lambda tensors, said: target.draft(changes(tensors, said), dtypes),
        assets=output.assets if target.weights else (),
        recipe={**output.recipe, "to": target.name},
    )


def truncated(layered: Layered) -> Changes[truncate.LayerOutcome | None]:
    """What the layers change that `truncate` makes."""

    def changes(tensors: Mapping[str, Ref], said: Sequence[truncate.LayerOutcome | None] | None) -> Portable:
        ranks = {one.layer.path: one.rank for one in said or () if one is not None}
        layers = [
            Made(layer, ranks.get(path, layer.rank), layer.scale, None if layer.bias is None else layer.bias.spec.name)
            for path, layer in layered.layers.items()
        ]
        return of_layers(layered.adapter, layers, layered.saved, tensors)

    return changes


def stored_as(layered: Layered) -> dict[str, str]:
    """By the names of factors that are made of stored ones, in float64, what those are stored as."""
    refs = (ref for layer in layered.layers.values() for ref in layer.refs)
    return {ref.spec.name: dtype_of(ref) for ref in refs if ref.made is not None}


def summed(adapters: Sequence[Layered], layers: Sequence[Combined]) -> Changes[summation.LayerOutcome | None]:
    """What the layers change that `sum` makes. None of them is DoRA any more."""

    def changes(tensors: Mapping[str, Ref], said: Sequence[summation.LayerOutcome | None] | None) -> Portable:
        ranks = {one.layer.path: one.rank for one in said or () if one is not None}
        made = [
            Made(one.first._replace(magnitude=None), ranks.get(one.path, one.rank), one.scale, one.bias)
            for one in layers
        ]
        saved = {ref.spec.name: module for one in adapters for module in one.saved for ref in module.factors.values()}
        kept = [module for name, module in saved.items() if name in tensors]
        return of_layers(adapters[0].adapter, made, kept, tensors)

    return changes


def extracted(base: Checkpoint, choices: Sequence[Choice], cut: RankChoice, dtype: str) -> Changes[extract.Extracted]:
    """What the adapter changes that `extract` makes."""

    def change(choice: Choice, rank: int, tensors: Mapping[str, Ref]) -> Module:
        refs = [tensors[spec.name] for spec in extract.specs_of(choice, cut, dtype)]
        if choice.how == FACTORS:
            factors = dict(zip((A, B), refs, strict=True))
            return Module(choice.module, f"{choice.module}.weight", LORA.name, factors, 1.0, rank, layer=choice.module)
        target = choice.keys[0].replace(".base_layer.", ".")
        return Module(target.rpartition(".")[0], target, FULL.name, {TUNED: refs[0]}, 1.0)

    def changes(tensors: Mapping[str, Ref], said: Sequence[extract.Extracted] | None) -> Portable:
        ranks = {one.choice.base.spec.name: one.rank for one in said or ()}
        kept = [choice for choice in choices if choice.how in (FACTORS, SAVED)]
        found = tuple(change(one, ranks.get(one.base.spec.name, cut.rank or 1), tensors) for one in kept)
        adapter = Adapter(base.path, {}, found, trained_on=str((base.config or {}).get("_name_or_path") or ""))
        return Portable(adapter=adapter, changes=found, config=base.config)

    return changes
