"""A PEFT adapter as the layers that PEFT makes of it: what shares one rank and one alpha.

A layer has one pair of factors; a MultiheadAttention has two, and a parameter with experts as many in one pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.formats.format import Move
from adaptertool.formats.peft.fields import FORMAT
from adaptertool.formats.peft.keys import CONFIG, PREFIX
from adaptertool.formats.peft.saved import OUT_PROJ, OUT_PROJ_TIMES
from adaptertool.formats.unpaired import unpaired_layer
from adaptertool.kinds import kind_of
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.full import ALONE
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.offset import BIAS
from adaptertool.kinds.parts import parts_of
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.layers import Layer, Layered, Pair
from adaptertool.spec.tensors import Ref

_TARGETS = ("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern")


def layered(adapter: Adapter) -> Layered:
    """The layers of an adapter that was read without its base, which is taken to have all that is targeted. Raises
    UnsupportedError where no base has all of it, and where tuned tensors have keys that an adapter of LoRA has not."""
    if (tag := adapter.fields.get("peft_type")) in {spelling.tag for spelling in ALONE[FORMAT]}:
        raise UnsupportedError(
            f"{adapter.path / CONFIG}: peft_type {tag}: its tensors are no factors; sum and truncate write adapters "
            "of LoRA: merge it into the base"
        )
    if {"gate_up_proj", "up_proj"} <= {
        name.rpartition(".")[2] for name in adapter.fields.get("target_parameters") or ()
    }:
        raise UnsupportedError(
            f"{adapter.path / CONFIG}: target_parameters names gate_up_proj and up_proj; which of them the base has is "
            "not known without it: leave only that one"
        )
    return _of(adapter)


def renamed(adapter: Layered, moves: Mapping[str, Move]) -> Layered:
    """The adapter with other names for some of its modules; what its config targets is then open.

    moves: by the name of a module, what becomes of the names that it has: its own, its target's, its layer's and, below
    the prefix, those of its factors
    """
    modules = tuple(
        _moved(module, moves[module.name]) if module.name in moves else module for module in adapter.adapter.modules
    )
    tokens = adapter.fields.get("trainable_token_indices")
    fields = {name: value for name, value in adapter.fields.items() if name not in _TARGETS}
    if isinstance(tokens, dict):
        new = {old.name: module.name for old, module in zip(adapter.adapter.modules, modules, strict=True)}
        fields["trainable_token_indices"] = {new.get(name, name): rows for name, rows in tokens.items()}
    return _of(replace(adapter.adapter, modules=modules, fields=fields))


def _moved(module: Module, move: Move) -> Module:
    return module._replace(
        name=move(module.name),
        target=move(module.target),
        layer=move(module.layer) if module.layer else "",
        factors={
            role: ref.renamed(PREFIX + move(ref.spec.name.removeprefix(PREFIX))) for role, ref in module.factors.items()
        },
    )


def _of(adapter: Adapter) -> Layered:
    saved = tuple(module for module in adapter.modules if kind_of(module).replaces)
    return Layered(adapter, _layers(adapter), saved)


def _layers(adapter: Adapter) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    for whole in adapter.modules:
        module, path = _as_product(whole), whole.layer
        kind = kind_of(module)
        if kind.replaces:
            continue
        if kind.follows:  # follows the change of the weight
            layers[path] = layers[path]._replace(bias=_bias_of(layers[path], module.factors[BIAS]))
            continue
        own = _layer(module) if kind.pair and kind.becomes is None else unpaired_layer(module, _names(module))
        if path not in layers:
            layers[path] = own
        elif own.unpaired is layers[path].unpaired is None:
            layers[path] = layers[path]._replace(pairs=(*layers[path].pairs, *own.pairs))
        else:
            raise UnsupportedError(
                f"{adapter.path}: {shown(path)} is of kind {module.kind}, and more than one tensor of the layer is "
                "changed, as its bias: no LoRA is made of that; merge it into its base, and extract a LoRA"
            )
    return layers


def _names(module: Module) -> tuple[str, str]:
    """The keys of A and B, of a layer or, where rows are looked up, of an embedding."""
    a, b = ("lora_embedding_A", "lora_embedding_B") if module.transposed else (f"{A}.weight", f"{B}.weight")
    return f"{PREFIX}{module.layer}.{a}", f"{PREFIX}{module.layer}.{b}"


def _bias_of(layer: Layer, bias: Ref) -> Ref:
    """Raises MismatchError where it is not one number for each output."""
    outputs = layer.pairs[0].outputs
    if bias.shape != (outputs,):
        raise MismatchError(f"{bias.path}: {shown(bias.spec.name)} is {bias.spec}, but the layer has {outputs} outputs")
    return bias


def _as_product(module: Module) -> Module:
    """A change that comes down to one product is that; one that does not, or of which only the base tells the size,
    stays what it is."""
    if kind_of(module).size is not None:
        return module
    parts = parts_of(module)
    if parts is None:
        return module
    (part, *others) = parts
    return module if others or not kind_of(part).is_product else part


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
