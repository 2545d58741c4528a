"""An adapter of MLX's as layers, each with the pair of factors as PEFT has it: what they are in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adaptertool.errors import UnsupportedError, shown
from adaptertool.formats.format import Move
from adaptertool.kinds import kind_of
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.lora import A, B
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.layers import Layer, Layered, Pair


def layered(adapter: Adapter) -> Layered:
    """The layers of an adapter that was read without its base. Raises UnsupportedError for DoRA of an embedding, which
    no other tool has so."""
    factored = [module for module in adapter.modules if not kind_of(module).replaces]
    for module in factored:
        if kind_of(module).norms is not None and module.transposed is False:
            raise UnsupportedError(
                f"{adapter.path}: {shown(module.name)} is an embedding with DoRA, which has a magnitude for each row "
                "of the vocabulary in MLX alone: merge it into its base"
            )
    saved = tuple(module for module in adapter.modules if kind_of(module).replaces)
    return Layered(adapter, {module.layer: _layer(module) for module in factored}, saved)


def _layer(module: Module) -> Layer:
    pair = Pair(module.factors[A], module.factors[B])
    magnitude = module.factors.get(MAGNITUDE)
    return Layer(module.layer, module.rank, module.scale, (pair,), None, magnitude, is_parameter=False)


def renamed(adapter: Layered, moves: Mapping[str, Move]) -> Layered:
    """The adapter with other names for some of its modules, and for their factors."""
    modules = tuple(
        _moved(module, moves[module.name]) if module.name in moves else module for module in adapter.adapter.modules
    )
    return layered(replace(adapter.adapter, modules=modules))


def _moved(module: Module, move: Move) -> Module:
    return module._replace(
        name=move(module.name),
        target=move(module.target),
        layer=move(module.layer) if module.layer else "",
        factors={role: ref.renamed(move(ref.spec.name)) for role, ref in module.factors.items()},
    )
