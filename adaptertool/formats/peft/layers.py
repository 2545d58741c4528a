"""A PEFT adapter as the layers that PEFT makes of it: what shares one rank and one alpha.

A layer has one pair of factors; a MultiheadAttention has two, and a parameter with experts as many in one pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.files.header import read_header
from adaptertool.files.jsonfile import load_json
from adaptertool.formats.peft.config import reading
from adaptertool.formats.peft.read import CONFIG, WEIGHTS, read_adapter
from adaptertool.formats.peft.saved import OUT_PROJ, OUT_PROJ_TIMES
from adaptertool.kinds import kind_of
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.offset import BIAS
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.layers import Layer, Layered, Pair


def read_layered(path: Path, leave_out: Sequence[str] | None = (), expert_layout: str | None = None) -> Layered:
    """Read an adapter without its base, which is taken to have all that is targeted; no factor is read.

    leave_out: as for `read_adapter`
    expert_layout: of lora_B of fused experts, where its config does not say
    """
    adapter = read_adapter(path, lambda _: True, reading(expert_layout), leave_out=leave_out)
    fields = load_json(path / CONFIG)
    if {"gate_up_proj", "up_proj"} <= {name.rpartition(".")[2] for name in fields.get("target_parameters") or ()}:
        raise UnsupportedError(
            f"{path / CONFIG}: target_parameters names gate_up_proj and up_proj; which of them the base has is not "
            "known without it: leave only that one"
        )
    return Layered(
        adapter,
        fields,
        _layers(adapter),
        tuple(module for module in adapter.modules if kind_of(module).replaces),
        read_header(path / WEIGHTS).metadata,
    )


def with_modules(layered: Layered, modules: tuple[Module, ...], fields: Mapping[str, Any]) -> Layered:
    """The adapter with others in the place of its modules."""
    adapter = replace(layered.adapter, modules=modules)
    saved = tuple(module for module in modules if kind_of(module).replaces)
    return Layered(adapter, fields, _layers(adapter), saved, layered.metadata)


def _layers(adapter: Adapter) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    for module in adapter.modules:
        path = module.layer
        if kind_of(module).replaces:
            continue
        if kind_of(module).follows:  # follows the change of the weight
            layers[path] = layers[path]._replace(bias=module.factors[BIAS])
        elif not kind_of(module).pair:
            raise UnsupportedError(f"{adapter.path}: {shown(module.name)} is of kind {module.kind}, which is no B·A")
        elif path in layers:
            layers[path] = layers[path]._replace(pairs=(*layers[path].pairs, *_layer(module).pairs))
        else:
            layers[path] = _layer(module)
    return layers


def _layer(module: Module) -> Layer:
    times = OUT_PROJ_TIMES if module.name.endswith(OUT_PROJ) else 1
    a, b = module.factors[A], module.factors[B]
    wide = a.shape[0]
    if len(a.shape) < 2 or b.shape[1:2] != (wide,) or math.prod(b.shape[2:]) != 1 or wide % module.rank:
        raise MismatchError(
            f"{a.path}: {shown(module.name)} has {shown(a.spec.name)} {a.spec} and {shown(b.spec.name)} {b.spec}; "
            "these make no product"
        )
    if not a.spec.numel or not b.spec.numel:
        raise UnsupportedError(
            f"{a.path}: {shown(module.name)} has factors of no elements: of shards that were not gathered?"
        )
    return Layer(
        module.layer,
        module.rank,
        module.scale / times,
        (Pair(a, b),),
        None,
        module.factors.get(MAGNITUDE),
        is_parameter=module.layer == module.target,
        grouped=module.grouped,
    )
