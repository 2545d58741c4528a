"""The weight of a layer, for changes of its bias that depend on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from adaptertool.errors import UnsupportedError, shown
from adaptertool.kinds import kind_of
from adaptertool.resolution.resolve import Base
from adaptertool.spec.adapter import Adapter, Module


def with_weight(
    subject: Base,
    adapter: Adapter,
    module: Module,
    resolved: Mapping[str, Sequence[Module]],
    changed: Collection[str],
) -> Module:
    """The module, with the weight that its kind reads, if it reads one, among its factors. Raises UnsupportedError
    where that is not one whole tensor of numbers, or the adapter finds another than the base has.

    resolved: what the adapter changes, by tensor; changed: the tensors that adapters before it change
    """
    role = kind_of(module).reads
    if role is None:
        return module
    at = [
        (target, own)
        for target, all_of_it in resolved.items()
        for own in all_of_it
        if own.target == f"{module.name}.weight"
    ]
    target, own = at[0] if at else ("", module)
    if len(at) != 1 or own.view is not None or own.transposed or module.view is not None:
        _refuse(adapter, module, "which the base does not store as one tensor (out, in)")
    if not subject.base.headers:
        _refuse(adapter, module, "which is not read of a model in memory: merge it, and load that")
    ref = subject.tensors[target]
    if ref.made is not None:
        _refuse(adapter, module, "which the base stores as codes: dequantise it first")
    if target in changed or len(resolved[target]) > 1:
        _refuse(
            adapter, module, "which is changed before it: give this adapter first, or merge one, and then the other"
        )
    return module._replace(factors={**module.factors, role: ref})


def _refuse(adapter: Adapter, module: Module, why: str) -> NoReturn:
    raise UnsupportedError(
        f"{adapter.path}: what {module.kind} adds to the bias of {shown(module.name)} depends on its weight, {why}"
    )
