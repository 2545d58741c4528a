"""What an adapter changes, under names that are no format's: those of the base, where there is one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

from adaptertool.architectures.parts import part_of
from adaptertool.errors import UsageError, shown
from adaptertool.resolution.resolve import Base, resolve
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.portable import Portable
from adaptertool.spec.tensors import Ref


def portable(adapter: Adapter, subject: Base | None = None, parts: Sequence[str] = ()) -> Portable:
    """The changes of an adapter, in its order.

    subject: the base, every tensor of which that is changed must be there, and have a shape that fits
    parts: of a pipeline, of which alone the changes are taken; all where none is named

    Raises InputError for a base that does not fit, UsageError for a part that is not changed.
    """
    changes, stored = list(adapter.modules), dict[str, Ref]()
    if subject is not None:
        changes = list(_placed(subject, adapter, stored))
    names = subject.base.tensors if subject is not None else [change.name for change in changes]
    found = Portable(
        adapter=adapter,
        changes=tuple(changes),
        stored=stored,
        config=None if subject is None else subject.base.config,
        parts=frozenset(part.name for name in names if (part := part_of(name)[0])),
    )
    return _only(found, parts) if parts else found


def _placed(subject: Base, adapter: Adapter, stored: dict[str, Ref]) -> Iterator[Module]:
    """The changes under the names that the model has in memory. One that is stored in pieces is one change for each,
    where it has no such name itself."""
    by_module: dict[tuple[str, str], list[tuple[str, Module]]] = {}
    for tensor, modules in resolve(subject, adapter)[0].items():
        for placed in modules:
            by_module.setdefault((placed.name, placed.target), []).append((tensor, placed))
    for module in adapter.modules:
        places, target = by_module[module.name, module.target], subject.names.parameter(module.target)
        (tensor, first), *others = places
        whole = not others and first.view is None
        if whole or target is not None or first.view is not None:
            change = _named(module, target or (subject.names.in_memory(tensor) if whole else module.target))
            if whole:
                stored[change.target] = subject.tensors[tensor]
            yield change
            continue
        for disk, placed in places:
            change = _named(placed._replace(transposed=module.transposed), subject.names.in_memory(disk))
            stored[change.target] = subject.tensors[disk]
            yield change


def _named(module: Module, target: str) -> Module:
    """The change under another name; that of a layer is the path of its parameter."""
    if target == module.target:
        return module
    return module._replace(name=target.rpartition(".")[0], target=target)


def _only(found: Portable, wanted: Sequence[str]) -> Portable:
    """What is changed in these parts of the pipeline."""
    parts = [part_of(change.name)[0] for change in found.changes]
    names = [part.name if part is not None else "" for part in parts]
    for name in wanted:
        if name not in names:
            held = ", ".join(sorted({shown(one) for one in names if one})) or "none that is known"
            raise UsageError(f"{found.adapter.path} changes nothing in the part {shown(name)}; it has {held}")
    changes = tuple(change for change, name in zip(found.changes, names, strict=True) if name in wanted)
    return dataclasses.replace(found, changes=changes, left=Counter(name for name in names if name not in wanted))
