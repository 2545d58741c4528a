"""What adapters change in a base: edits by the names of its tensors, and how the set of tensors changes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import PurePath

from adaptertool.errors import UnsupportedError, by, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.reader import same_bytes
from adaptertool.kinds import kind_of
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.parts import parts_of
from adaptertool.planning.layer_weight import with_weights
from adaptertool.planning.layout import TensorSetChange
from adaptertool.planning.quantised_run import quantised_run
from adaptertool.planning.schedules import ALL, Choice, Weigher, Weight, require_whole
from adaptertool.resolution.heads import Head, require_only, take_head
from adaptertool.resolution.resolve import Base, resolve
from adaptertool.resolution.ties import decide
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.plan import Edit

# Without the function of the class itself, which takes three times as long: there may be hundreds of thousands
_new_edit = functools.partial(tuple.__new__, Edit)


def adapter_edits(
    subject: Base,
    adapters: Sequence[Adapter],
    weights: Sequence[Weight],
    choice: Choice = ALL,
    *,
    mixed: bool = False,
    combined_alike: Callable[[str, str], bool] = lambda _, __: True,
) -> tuple[dict[str, list[Edit]], TensorSetChange, list[str]]:
    """What the adapters change, by the names of the tensors; how the set of tensors changes; and notes.

    combined_alike: whether the changes of both of two tied ends are combined in the same way

    Raises UnsupportedError for a tensor that is resized or padded after a change of it, and what resolving raises.
    """
    weigh = Weigher(weights, subject.tensors)
    choice.check(subject.tensors)
    edits: dict[str, list[Edit]] = {}
    notes: list[str] = []
    head: Head | None = None
    touched, tied, chosen = list[set[str]](), {*subject.ends, *subject.ends.values()}, bool(choice.said)
    for number, whole in enumerate(adapters):
        before, was, fixed = len(subject.resized), set(subject.padded), weigh.fixed(number)
        new, adapter = take_head(subject.base, subject.names, whole)
        if new is not None:
            require_only(adapter, [weigh(number, name) for name in new.tensors], head)
            require_whole(adapter, choice, new.tensors, "brings a new head")
            head = new
        resolved, more = resolve(subject, adapter)
        if sizes := list(subject.resized)[before:]:
            _require_first(adapter, [weigh(number, name) for name in sizes], first=not edits)
            require_whole(adapter, choice, sizes, "resizes the vocabulary")
        require_whole(adapter, choice, padded := sorted(subject.padded.keys() - was), "pads a weight with zeros")
        if late := [name for name in padded if edits.get(name)]:
            raise UnsupportedError(
                f"{adapter.path} pads {shown(late[0])} with zeros, which an adapter before it changes; give it first"
            )
        notes += [*more, *_other_base(subject.base, adapter), *quantised_run(subject.base, adapter)]
        touched.append({*resolved})
        for target, modules in with_weights(subject, adapter, resolved, frozenset(edits)).items():
            if chosen and not choice.takes(target) and target not in tied:
                continue
            if own := edits.setdefault(target, []):
                modules = _without_copies(subject, adapter, target, modules)
            weight = weigh(number, target) if fixed is None else fixed
            for module in modules:
                for part in _parts(subject, target, module):
                    own.append(_edit(part, number, weight, module, mixed))
    ends = subject.ends if head is None else {}  # such a model has no end that could be tied
    tying = [number for number, adapter in enumerate(adapters) if adapter.ties_ends]

    def amended(name: str, own: Sequence[Edit]) -> list[Edit]:
        """The edits of an end, some of them perhaps made for the one that it is tied to."""
        return [one._replace(weight=weigh(one.adapter, name)) for one in own] if choice.takes(name) else []

    apart, more = decide(edits, ends, subject.resized, tying, amended, combined_alike)
    edits = {name: own for name, own in edits.items() if choice.takes(name)} if choice.said else edits
    if choice.said:
        for adapter, changed, every in zip(adapters, changed_by(edits, len(adapters)), touched, strict=True):
            notes += choice.notes(adapter.path, len(every - changed), len(every))
    notes += subject.traits.notes_on(edits)
    changes = TensorSetChange({end: ends[end] for end in apart}, subject.resized, head, subject.padded)
    if head is not None:
        notes += head.notes(subject.base, subject.ends, edits)
    return edits, changes, [*notes, *_on_sizes(subject), *more]


def changed_by(edits: Mapping[str, Sequence[Edit]], count: int) -> list[set[str]]:
    """The names of the tensors that each of `count` sources changes."""
    found = [set[str]() for _ in range(count)]
    for name, own in edits.items():
        for edit in own:
            found[edit.adapter].add(name)
    return found


def _on_sizes(subject: Base) -> Iterator[str]:
    for name, ref in subject.resized.items():
        yield f"{shown(name)} has {ref.spec.shape[0]:,} rows in the adapter, and so in the output"
    for name, ref in subject.padded.items():
        yield (
            f"{shown(name)} is {by(subject.base.tensors[name].shape)} in the base, and {by(ref.shape)} in the output: "
            "the adapter has it padded with zeros first; its loader must take more channels"
        )


def _edit(part: Module, number: int, weight: float, module: Module, mixed: bool) -> Edit:
    """The edit that makes a part of what a module changes."""
    name, _, kind, factors, scale, _, _, _, view, transposed = part[:10]
    part_of = None if part is module else module
    return _new_edit((kind, number, name, factors, scale, weight, bool(transposed), view, mixed, part_of))


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


def _require_first(adapter: Adapter, weights: Collection[float], *, first: bool) -> None:
    """Raises UnsupportedError for an adapter that resizes the vocabulary with a weight, or after others."""
    if other := [weight for weight in weights if weight != 1]:
        raise UnsupportedError(f"{adapter.path} resizes the vocabulary; that cannot be done with weight {other[0]:g}")
    if not first:
        raise UnsupportedError(
            f"{adapter.path} resizes the vocabulary; that cannot be done after other adapters; give it first"
        )
