"""Modules of several adapters that are one module of the model, under the names of two versions, or under one.

What tells: their base, or the rules of its architecture (architectures/conversion.py). Where neither is known, names
that seem to mean the same are refused: side by side in one adapter they would be two changes, of which loaders drop
one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from adaptertool.architectures.conversion import all_rules, into_memory
from adaptertool.errors import MismatchError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats import BY_NAME
from adaptertool.kinds import kind_of
from adaptertool.planning.edits import adapter_edits
from adaptertool.resolution.correspondence import meanings
from adaptertool.resolution.prefix import tower_of
from adaptertool.resolution.renaming import renaming
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.adapter import Module
from adaptertool.spec.layers import Layered
from adaptertool.spec.plan import Edit

Identity = Mapping[str, Hashable]  # name of a module -> what it is; the same for the same, whatever adapter has it


def under_one_name(
    adapters: Sequence[Layered], base: Checkpoint | None, renames: Sequence[str]
) -> tuple[list[Layered], list[str]]:
    """The adapters with one name for each module of the model, after these renamings; and notes.

    Raises MismatchError where that is not known, or one adapter has a module twice.
    """
    with renaming(renames) as own:
        adapters = [_renamed(adapter, _new_names(adapter, own)) for adapter in adapters]
    if base is not None:
        edits = [adapter_edits(open_base(base), [adapter.adapter], [1.0])[0] for adapter in adapters]
        return _joined(adapters, list(map(_by_edits, edits)))
    notes: list[str] = []
    if identities := _by_architecture(adapters):
        adapters, notes = _joined(adapters, identities)
    _require_told_apart(adapters)
    return list(adapters), notes


def _new_names(adapter: Layered, rename: Callable[[str], str]) -> dict[str, tuple[str, str]]:
    names = {module.name: (module.target, rename(module.target)) for module in reversed(adapter.adapter.modules)}
    return {name: (old, new) for name, (old, new) in names.items() if old != new}


def _by_architecture(adapters: Sequence[Layered]) -> list[Identity] | None:
    """The identities of modules by the rules of the architecture that the adapters were trained on (auto_mapping),
    where they say it."""
    said = {
        name
        for adapter in adapters
        if isinstance(mapping := adapter.fields.get("auto_mapping"), dict)
        and isinstance(name := mapping.get("base_model_class"), str)
    }
    if len(said) != 1:
        return None
    config = {"architectures": list(said)}
    return [
        {
            name: (meaning, _is_saved(module))
            for module in adapter.adapter.modules
            for name, meaning in ((module.name, meanings([_tensor(module)], config).get(_tensor(module))),)
            if meaning is not None
        }
        for adapter in adapters
    ]


def _by_edits(edits: Mapping[str, Sequence[Edit]]) -> Identity:
    """The identity of modules by what a merge into the base would change: the tensor, or the part of it."""
    found: dict[str, list[Hashable]] = {}
    for target, chain in edits.items():
        for edit in chain:
            place = None if edit.view is None else (edit.view.rows, edit.view.columns)
            found.setdefault(edit.module, []).append((target, place, kind_of(edit).replaces))
    return {name: tuple(places) for name, places in found.items()}


def _joined(adapters: Sequence[Layered], identities: Sequence[Identity]) -> tuple[list[Layered], list[str]]:
    """The adapters, each module under the name that the first of them has for it; and a note.

    Raises MismatchError where one adapter has the same module twice.
    """
    first: dict[Hashable, str] = {}
    done, notes = [], []
    for adapter, own in zip(adapters, identities, strict=True):
        here: dict[Hashable, str] = {}
        for name, identity in own.items():
            if here.setdefault(identity, name) != name:
                raise MismatchError(
                    f"{adapter.adapter.path}: {shown(here[identity])} and {shown(name)} are one module of the model"
                )
            first.setdefault(identity, name)
        names = {name: (name, first[identity]) for name, identity in own.items() if first[identity] != name}
        done.append(_renamed(adapter, names))
        if names:
            old, new = next(iter(names.values()))
            notes.append(
                f"{adapter.adapter.path}: {len(names)} modules have other names than in adapters before it, and are "
                f"joined with those: {shown(old)} is {shown(new)}{' ...' if len(names) > 1 else ''}"
            )
    return done, notes


def _renamed(adapter: Layered, names: Mapping[str, tuple[str, str]]) -> Layered:
    """names: of modules -> a name that begins as theirs do, and what it is to be."""
    if not names:
        return adapter
    moves = {name: _move(*change) for name, change in names.items()}
    return BY_NAME[adapter.adapter.format].renamed(adapter, moves)


def _move(old_name: str, new_name: str) -> Callable[[str], str]:
    before, after = old_name.split("."), new_name.split(".")
    while before and after and before[-1] == after[-1]:
        before.pop()
        after.pop()
    old, front = ".".join(before), ".".join(after)

    def move(name: str) -> str:
        rest = name.removeprefix(old).removeprefix(".")
        return f"{front}.{rest}" if front and rest else front or rest

    return move


def _require_told_apart(adapters: Sequence[Layered]) -> None:
    """Raises MismatchError for modules of two adapters that seem to be one under two names: without their base that is
    all that can be told."""
    known = [{_path(module) for module in adapter.adapter.modules} for adapter in adapters]
    groups: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for number, paths in enumerate(known):
        for path in paths:
            for group in _groups(path):
                groups.setdefault(group, []).append((path, number))
    for some in groups.values():
        for path, number in some if len({path for path, _ in some}) > 1 else ():
            for other, of in some:
                if number < of and other not in known[number] and path not in known[of] and _may_be_one(path, other):
                    raise _same(path, adapters[number], other, adapters[of])
    for one, two in itertools.combinations(adapters, 2):
        if found := _of_two_ages(one, two):
            raise _same(found[0], one, found[1], two)


def _same(path: str, one: Layered, other: str, two: Layered) -> MismatchError:
    return MismatchError(
        f"{shown(path)} in {one.adapter.path} and {shown(other)} in {two.adapter.path} seem to be the same layer under "
        "the names of two versions; without their base that is not known: give it (--base), or rename one of them "
        "(--rename 'regex=>replacement')"
    )


def _of_two_ages(one: Layered, two: Layered) -> tuple[str, str] | None:
    """Targets of both that some architecture has as one tensor, on the disk and in memory."""
    targets = [{module.target: None for module in adapter.adapter.modules} for adapter in (one, two)]
    ours, theirs = ([name for name in own if name not in other] for own, other in (targets, targets[::-1]))
    for rules in all_rules() if ours and theirs else ():
        for names, others in ((ours, targets[1]), (theirs, targets[0])):
            for name in {re.sub(r"\d+", "0", name): name for name in reversed(names)}.values():  # one of all layers
                for memory, _ in into_memory(rules, name):
                    if memory != name and memory in others:
                        return (name, memory) if names is ours else (memory, name)
    return None


def _groups(path: str) -> Iterator[tuple[str, ...]]:
    """What modules have in common that may be one: the parts, sorted; and the end, from the list of layers on."""
    parts = path.split(".")
    yield tuple(sorted(parts))
    yield ("end", *parts[len(_front(parts)) :])


def _front(parts: Sequence[str]) -> Sequence[str]:
    """What stands before the list of layers; of what is in none, before its own name."""
    number = next((at for at, part in enumerate(parts) if part.isdecimal()), len(parts))
    return parts[: max(number - 1, 0)]


def _may_be_one(path: str, other: str) -> bool:
    """Unless each says its part of the model, and not the same: a tower, or half."""
    if sorted(path.split(".")) == sorted(other.split(".")):
        return True
    fronts = [_front(name.split(".")) for name in (path, other)]
    says: tuple[Callable[[str], str | None], ...] = (tower_of, lambda part: part if part in _HALVES else None)
    for say in says:
        one, two = ({said for part in front if (said := say(part))} for front in fronts)
        if one and two and not one & two:
            return False
    in_layers = any(part.isdecimal() for part in path.split("."))
    return in_layers or set(fronts[0]) <= set(fronts[1]) or set(fronts[1]) <= set(fronts[0])


_HALVES = frozenset({"encoder", "decoder"})


def _path(module: Module) -> str:
    return module.name.rpartition(".")[0] if _is_saved(module) else module.name


def _is_saved(module: Module) -> bool:
    return kind_of(module).replaces and module.rows is None


def _tensor(module: Module) -> str:
    return module.name if _is_saved(module) else f"{module.name}.weight"
