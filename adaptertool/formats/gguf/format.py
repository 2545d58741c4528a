"""The format of GGUF adapters, as the record that the rest of the program asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adaptertool.errors import UnsupportedError, shown
from adaptertool.formats.format import Format, Move, without_beside
from adaptertool.formats.gguf.keys import FILES, FORMAT, by_names, facts, recognise
from adaptertool.formats.saving import Saving
from adaptertool.kinds.lora import A, B
from adaptertool.late import late
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.layers import Layer, Layered, Pair


def layered(adapter: Adapter) -> Layered:
    """The adapter as layers. Raises UnsupportedError for factors of experts."""
    if stacked := next((module for module in adapter.modules if module.stacked), None):
        raise UnsupportedError(
            f"{adapter.path}: {shown(stacked.name)} has factors for a stack of experts; sums and truncation of such "
            "are not supported yet: merge it into its base"
        )
    return Layered(adapter, {module.layer: _layer(module) for module in adapter.modules}, ())


def _layer(module: Module) -> Layer:
    pair = Pair(module.factors[A], module.factors[B])
    return Layer(module.layer, module.rank, module.scale, (pair,), None, None, is_parameter=False)


def renamed(adapter: Layered, moves: Mapping[str, Move]) -> Layered:
    """The adapter with other names for some of its modules."""
    modules = tuple(
        module._replace(
            name=move(module.name),
            target=move(module.target),
            layer=move(module.layer),
            factors={role: ref.renamed(move(ref.spec.name)) for role, ref in module.factors.items()},
        )
        if (move := moves.get(module.name))
        else module
        for module in adapter.adapter.modules
    )
    return layered(replace(adapter.adapter, modules=modules))


read_adapter = late("adaptertool.formats.gguf.read", "read_adapter")
GGUF = Format(
    name=FORMAT,
    files=FILES,
    recognise=recognise,
    read=read_adapter,
    read_as_far_as_clear=without_beside(read_adapter),
    by_names=by_names,
    facts=facts,
    layered=layered,
    renamed=renamed,
    misreadings=lambda _: {},
    save=Saving(draft=late("adaptertool.formats.gguf.write", "draft"), weights="", end=".gguf"),
)
