"""What adapters change in a base: edits by the names of its tensors, and how the set of tensors changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import NoReturn

from adaptertool.errors import UnsupportedError, by, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.reader import same_bytes
from adaptertool.kinds import kind_of
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.parts import parts_of
from adaptertool.planning.layer_weight import with_weight
from adaptertool.planning.layout import TensorSetChange
from adaptertool.planning.quantised_run import quantised_run
from adaptertool.resolution.heads import Head, require_only, take_head
from adaptertool.resolution.resolve import Base, resolve
from adaptertool.resolution.ties import decide
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.plan import Edit


def adapter_edits(
    subject: Base, adapters: Sequence[Adapter], weights: Sequence[float], *, mixed: bool = False
) -> tuple[dict[str, list[Edit]], TensorSetChange, list[str]]:
    """What the adapters change, by the names of the tensors; how the set of tensors changes; and notes.

    Raises UnsupportedError for a tensor that is resized or padded after a change of it, and what resolving raises.
    """
    edits: dict[str, list[Edit]] = {}
    notes: list[str] = []
    head: Head | None = None
    for number, (whole, weight) in enumerate(zip(adapters, weights, strict=True)):
        before, was = len(subject.resized), set(subject.padded)
        new, adapter = take_head(subject.base, subject.names, whole)
        if new is not None:
            require_only(adapter, weight, head)
            head = new
        resolved, more = resolve(subject, adapter)
        if len(subject.resized) > before and (weight != 1 or edits):
            _refuse_resizing(adapter, weight)
        if late := sorted(name for name in subject.padded.keys() - was if edits.get(name)):
            raise UnsupportedError(
                f"{adapter.path} pads {shown(late[0])} with zeros, which an adapter before it changes; give it first"
            )
        changed = frozenset(edits)
        notes += [*more, *_other_base(subject.base, adapter), *quantised_run(subject.base, adapter)]
        for target, modules in resolved.items():
            if edits.get(target):
                modules = _without_copies(subject, adapter, target, modules)
            modules = [with_weight(subject, adapter, module, resolved, changed) for module in modules]
            edits.setdefault(target, []).extend(
                Edit(
                    part.kind,
                    number,
                    part.name,
                    part.factors,
                    part.scale,
                    weight,
                    transposed=bool(part.transposed),
                    view=part.view,
                    on_base=mixed,
                    part_of=None if part is module else module,
                )
                for module in modules
                for part in _parts(subject, target, module)
            )
    ends = subject.ends if head is None else {}  # such a model has no end that could be tied
    tying = [number for number, adapter in enumerate(adapters) if adapter.ties_ends]
    apart, more = decide(edits, ends, subject.resized, tying)
    notes += subject.traits.notes_on(edits)
    changes = TensorSetChange({end: ends[end] for end in apart}, subject.resized, head, subject.padded)
    if head is not None:
        notes += head.notes(subject.base, subject.ends, edits)
    for name, ref in subject.resized.items():
        notes.append(f"{shown(name)} has {ref.spec.shape[0]:,} rows in the adapter, and so in the output")
    for name, ref in subject.padded.items():
        notes.append(
            f"{shown(name)} is {by(subject.base.tensors[name].shape)} in the base, and {by(ref.shape)} in the output: "
            "the adapter has it padded with zeros first; its loader must take more channels"
        )
    return edits, changes, notes + more


def _parts(subject: Base, target: str, module: Module) -> Sequence[Module]:
    """What a change comes down to, on that tensor."""
    if kind_of(module).becomes is None:
        return [module]
    shape = subject.tensors[target].spec.shape if module.view is None else module.view.shape
    return parts_of(module, shape[::-1] if module.transposed else shape) or ()


def _without_copies(subject: Base, adapter: Adapter, target: str, modules: Sequence[Module]) -> list[Module]:
    """The changes of a tensor without the base's own weight, which PEFT saves below the factors of an embedding: beside
    the change of another adapter it is none. Raises UnsupportedError where it is another."""
    kept = []
    for module in modules:
        ref = module.factors.get(TUNED)
        if len(modules) > 1 and kind_of(module).replaces and module.rows is None and ref is not None:
            base = subject.tensors[target]
            if ref.spec[1:] != base.spec[1:] or not same_bytes(ref, base):
                raise UnsupportedError(
                    f"{adapter.path}: {shown(ref.spec.name)} is saved below factors, is not the base's, and another "
                    f"adapter changes {shown(target)} too: there is no agreed meaning"
                )
            continue
        kept.append(module)
    return kept


def _other_base(base: Checkpoint, adapter: Adapter) -> list[str]:
    """A note where the adapter names another base: a fine-tune of the same shapes is told by its name alone."""
    folder = (base.path.parent if base.is_file else base.path).resolve()
    hub = [part.rpartition("--")[2] for part in folder.parts if part.startswith("models--")]
    said = (base.config or {}).get("_name_or_path")
    names = {folder.name, *hub, *([PurePath(said).name] if isinstance(said, str) else [])}
    if not adapter.trained_on or PurePath(adapter.trained_on).name.lower() in {name.lower() for name in names}:
        return []
    return [f"{adapter.path} says it was trained on {shown(adapter.trained_on)}; is {base.path} that? Its shapes fit"]


def _refuse_resizing(adapter: Adapter, weight: float) -> NoReturn:
    how = f"with weight {weight:g}" if weight != 1 else "after other adapters; give it first"
    raise UnsupportedError(f"{adapter.path} resizes the vocabulary; that cannot be done {how}")
