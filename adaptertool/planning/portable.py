"""What an adapter changes, under names that are no format's: those of the base, where there is one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from adaptertool.architectures.conversion import Part
from adaptertool.architectures.gguf import EMBEDDING, HEAD
from adaptertool.architectures.parts import DENOISERS, ORIGINALS, part_of
from adaptertool.errors import UnsupportedError, UsageError, shown
from adaptertool.formats.kohya.padded import require_none_padded
from adaptertool.formats.peft.format import PEFT
from adaptertool.formats.saving import ORIGINAL, OURS, OWN
from adaptertool.kinds import kind_of
from adaptertool.kinds.equivalent import spelled_as
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import made, turned, whole
from adaptertool.planning.experts import experts_apart, is_of_experts
from adaptertool.planning.joined import Block, joined
from adaptertool.resolution.components import ComponentNames, Spelled
from adaptertool.resolution.resolve import Base, resolve
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.portable import Portable
from adaptertool.spec.tensors import Ref


def portable(
    adapter: Adapter,
    subject: Base | None = None,
    parts: Sequence[str] = (),
    names: str = OURS,
    ties: bool | None = None,
) -> Portable:
    """The changes of an adapter, in its order.

    names: in which spelling layers of image and video models are to be called (formats.saving.Saving)
    ties: whether the other format changes ends that the base ties as one (the same)

    subject: the base, every tensor of which that is changed must be there, and have a shape that fits
    parts: of a pipeline, of which alone the changes are taken; all where none is named

    Raises InputError for a base that does not fit, UsageError for a part that is not changed, UnsupportedError for what
    would be another change there.
    """
    changes, stored = list(adapter.modules), dict[str, Ref]()
    require_none_padded(adapter)
    for change in changes:
        if change.transposed is False and kind_of(change).norms:
            raise UnsupportedError(
                f"{adapter.path}: {shown(change.name)} is an embedding with DoRA, which has a magnitude for each row "
                "of the vocabulary in MLX alone: merge it into its base, and extract a LoRA"
            )
    if subject is not None:
        changes = list(_placed(subject, adapter, stored, names))
        if ties is not None and subject.ends:
            _require_ends_alike(subject, adapter, stored, ties=ties)
    held = subject.base.tensors if subject is not None else [change.name for change in changes]
    found = Portable(
        adapter=adapter,
        changes=tuple(changes),
        stored=stored,
        config=None if subject is None else subject.base.config,
        gguf=None if subject is None else subject.base.gguf,
        ends={} if subject is None else _ends(subject),
        stamps={} if subject is None else {header.path: header.stamp for header in subject.base.headers},
        parts=frozenset(part.name for name in held if (part := part_of(name)[0])),
    )
    return _only(found, parts) if parts else found


def _ends(subject: Base) -> Mapping[str, str]:
    """What is tied, and not stored. In GGUF a model without a head computes it with the embedding."""
    if subject.base.gguf is None or HEAD in subject.base.tensors:
        return subject.ends
    return {HEAD: EMBEDDING}


def _require_ends_alike(subject: Base, adapter: Adapter, stored: Mapping[str, Ref], *, ties: bool) -> None:
    """Raises UnsupportedError for a change of an end that the base ties, which would be one of both ends, or of that
    alone, and is not."""
    sources = dict.fromkeys(subject.ends.values())
    ends = ", ".join(map(shown, (*subject.ends, *sources)))
    for name in (ref.spec.name for ref in stored.values()):
        of_head = name in subject.ends and (ties or adapter.ties_ends)
        if of_head or (name in sources and ties != adapter.ties_ends):
            why = "written so it would change all of them" if ties else "the adapter changes all of them by it"
            raise UnsupportedError(
                f"{adapter.path}: a change of {shown(name)}; the base ties {ends}, and "
                f"{why}, as the two formats differ in that: merge it into its base"
            )


def _placed(subject: Base, adapter: Adapter, stored: dict[str, Ref], names: str) -> Iterator[Module]:
    """The changes under the names that the model has in memory. One that is stored in pieces is one change for each,
    where it has no such name itself."""
    blocks: list[Block] = []
    prefix = subject.names.find_all([(module.target, kind_of(module).replaces) for module in adapter.modules])[1]
    by_module: dict[tuple[str, str], list[tuple[str, Module]]] = {}
    for tensor, modules in resolve(subject, adapter)[0].items():
        for placed in modules:
            by_module.setdefault((placed.name, placed.target), []).append((tensor, placed))
    for module in adapter.modules:
        places, target = by_module[module.name, module.target], subject.names.parameter(module.target)
        (tensor, first), *others = places
        if is_of_experts(module, places):
            for disk, change in experts_apart(subject, adapter, module, places):
                if disk:
                    stored[change.target] = subject.tensors[disk]
                yield change
            continue
        whole = not others and first.view is None
        if isinstance(subject.names, ComponentNames) and (spelled := subject.names.spelled(module.target)) is not None:
            if (block := _block(adapter, module, spelled, names)) is not None:
                blocks.append(block)
                continue
            for change in _respelled(adapter, module, spelled, names):
                if whole and change.target.endswith(spelled.path):
                    stored[change.target] = subject.tensors[tensor]
                yield change
            continue
        if whole or target is not None or first.view is not None:
            own = _of_embedding(module._replace(factors=first.factors)) if whole else module  # as they are for that
            other = prefix is not None and not whole and subject.names.find(module.target) is None
            here = prefix(module.target) if prefix is not None and other else module.target
            change = _named(own, target or (subject.names.in_memory(tensor) if whole else here))
            if whole:
                stored[change.target] = subject.tensors[tensor]
            yield change
            continue
        for disk, placed in places:
            change = _named(placed._replace(transposed=module.transposed), subject.names.in_memory(disk))
            stored[change.target] = subject.tensors[disk]
            yield change
    yield from joined(adapter, blocks)


def _as_original(spelled: Spelled, names: str) -> bool:
    """Whether a layer is to be called as in the original repository. A base that stores several of diffusers' in one
    says that of all."""
    own = names == OWN and (spelled.fused or spelled.original == spelled.path)
    return spelled.part in DENOISERS and (names == ORIGINAL or own)


def _block(adapter: Adapter, module: Module, spelled: Spelled, names: str) -> Block | None:
    """The change as that of some rows of a layer of the original repository, where it is to be written as that."""
    if spelled.original is not None or spelled.within is None or not _as_original(spelled, names):
        return None
    part = spelled.within.part
    assert part is not None
    change = _cut(adapter, module, part) if part.swapped else module
    return Block(part, _named(change, f"{ORIGINALS}{spelled.within.original}"))


def _respelled(adapter: Adapter, module: Module, spelled: Spelled, names: str) -> Iterator[Module]:
    """The change under the names that its layer has in a spelling; several where it is of several layers there."""
    if spelled.original is not None and _as_original(spelled, names):
        yield _named(module, f"{ORIGINALS}{spelled.original}")
        return
    for name, part in spelled.ours:
        change = module if part is None else _cut(adapter, module, part)
        yield _named(change, f"{spelled.part}.{name}")


def _cut(adapter: Adapter, module: Module, part: Part) -> Module:
    """The change of some rows of its layer. Raises UnsupportedError for kinds that are not cut."""
    module = spelled_as(module, PEFT.name) or module  # of which rows can be taken
    kind = kind_of(module)
    if not kind.by_row or kind.undivided or part.turned or kind.becomes is not None:
        raise UnsupportedError(
            f"{adapter.path}: {shown(module.name)} is of kind {module.kind}, and several layers, or otherwise stored, "
            "where it is to be written: merge it into its base, and extract a LoRA"
        )
    factors = {role: _rows(ref, part) if role in kind.by_row else ref for role, ref in module.factors.items()}
    return module._replace(factors=factors)


def _rows(ref: Ref, part: Part) -> Ref:
    size = ref.shape[0]
    if not part.swapped:
        rows = part.of(size)
        return ref.rows(rows.start, rows.stop)
    half = size // 2
    return made([ref], ref.shape, lambda read, a, b: np.roll(whole(read, ref), half, axis=0)[a:b])


def _of_embedding(change: Module) -> Module:
    """What GGUF has of an embedding (vocabulary, d), as that of (d, vocabulary)."""
    if change.target != EMBEDDING or change.transposed or not kind_of(change).is_product:
        return change
    factors = {A: turned(change.factors[B]), B: turned(change.factors[A])}
    return change._replace(factors=factors, transposed=True)


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
