"""The weights of layers, for changes of them, or of their biases, that are made of what the base has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from adaptertool.errors import UnsupportedError, shown
from adaptertool.kinds import kind_of
from adaptertool.kinds.made import turned
from adaptertool.resolution.resolve import Base
from adaptertool.spec.adapter import Adapter, Module

Resolved = Mapping[str, Sequence[Module]]  # by the tensor that they change


def with_weights(subject: Base, adapter: Adapter, resolved: Resolved, changed: Collection[str]) -> Resolved:
    """What an adapter changes, with the weights that its kinds read, if they read any, among the factors. Raises
    UnsupportedError where one is not one whole tensor of numbers, or the adapter finds another than the base has.

    changed: the tensors that adapters before it change
    """
    if not any(kind_of(module).reads for modules in resolved.values() for module in modules):
        return resolved
    places: dict[str, list[tuple[str, Module]]] = {}
    for target, modules in resolved.items():
        for module in modules:
            places.setdefault(module.target, []).append((target, module))

    def read(module: Module) -> Module:
        role = kind_of(module).reads
        if role is None:
            return module
        at = places.get(f"{module.name}.weight", ())
        if len(at) != 1 or at[0][1].view is not None or module.view is not None:
            _refuse(adapter, module, "which the base does not store as one tensor")
        if not subject.base.headers:
            _refuse(adapter, module, "which is not read of a model in memory: merge it, and load that")
        ((target, _),) = at
        ref = subject.tensors[target]
        if ref.made is not None:
            _refuse(adapter, module, "which the base stores as codes: dequantise it first")
        if target in changed or len(resolved[target]) > 1:
            _refuse(adapter, module, "which is changed before: give this adapter first, or merge one, then the other")
        if at[0][1].transposed:
            ref = turned(ref)
        return module._replace(factors={**module.factors, role: ref})

    return {target: [read(module) for module in modules] for target, modules in resolved.items()}


def _refuse(adapter: Adapter, module: Module, why: str) -> NoReturn:
    raise UnsupportedError(
        f"{adapter.path}: what {module.kind} adds to {shown(module.target)} depends on the weight of the layer, {why}"
    )
