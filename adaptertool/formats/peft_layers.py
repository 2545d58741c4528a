"""A PEFT adapter as the layers that PEFT makes of it: what shares one rank and one alpha.

A layer has one pair of factors; a MultiheadAttention has two, and a parameter with experts as many in one pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.files.header import read_header
from adaptertool.files.jsonfile import load_json
from adaptertool.formats.peft import CONFIG, WEIGHTS, read_adapter
from adaptertool.formats.peft_config import reading
from adaptertool.formats.peft_saved import OUT_PROJ, OUT_PROJ_TIMES
from adaptertool.kinds import DORA, FULL, LORA, OFFSET
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.offset import BIAS
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref


class Pair(NamedTuple):
    """lora_A (E·r, in, ...), expert after expert, and lora_B (out, E·r, ...), in which the expert counts fastest, but
    in a grouped layer;  their names are the keys of the file. Without experts E is 1."""

    a: Ref
    b: Ref

    @property
    def inputs(self) -> int:
        return math.prod(self.a.spec.shape[1:])

    @property
    def outputs(self) -> int:
        return self.b.spec.shape[0]


class Layer(NamedTuple):
    """The low-rank change of one layer, or of one parameter: scale·B·A for each pair."""

    path: str  # which rank_pattern and alpha_pattern are matched against
    rank: int
    scale: float  # as PEFT computes it; that it applies out_proj of a MultiheadAttention twice is left to it
    pairs: tuple[Pair, ...]
    bias: Ref | None  # lora_B.bias
    magnitude: Ref | None  # DoRA
    is_parameter: bool  # of target_parameters
    grouped: bool = False  # of lora_B of experts: as of a Module

    @property
    def experts(self) -> int:
        return self.pairs[0].a.spec.shape[0] // self.rank

    @property
    def refs(self) -> Iterable[Ref]:
        for pair in self.pairs:
            yield from pair
        yield from (ref for ref in (self.bias, self.magnitude) if ref is not None)


@dataclass(frozen=True, slots=True)
class Layered:
    """An adapter with what it takes to write it again."""

    adapter: Adapter
    fields: Mapping[str, Any]  # of its config
    layers: Mapping[str, Layer]  # by path, in the order of the file
    saved: tuple[Module, ...]  # what is stored itself, not as factors: saved modules, biases, token rows
    metadata: Mapping[str, str]  # of its file of tensors


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
        tuple(module for module in adapter.modules if module.kind == FULL.name),
        read_header(path / WEIGHTS).metadata,
    )


def with_modules(layered: Layered, modules: tuple[Module, ...], fields: Mapping[str, Any]) -> Layered:
    """The adapter with others in the place of its modules."""
    adapter = replace(layered.adapter, modules=modules)
    saved = tuple(module for module in modules if module.kind == FULL.name)
    return Layered(adapter, fields, _layers(adapter), saved, layered.metadata)


def _layers(adapter: Adapter) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    for module in adapter.modules:
        path = module.layer
        if module.kind == FULL.name:
            continue
        if module.kind == OFFSET.name:  # follows the change of the weight
            layers[path] = layers[path]._replace(bias=module.factors[BIAS])
        elif module.kind not in (LORA.name, DORA.name):
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
