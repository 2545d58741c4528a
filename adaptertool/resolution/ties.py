"""Tied ends: an embedding and an output head that are one tensor in memory, and are stored once.

Which names are tied is data, from transformers itself (conversion.ties_of). An adapter may change one end and not the
other, or both in different ways: then the ends are stored apart, and config.json says that they are not tied. PEFT's
own merge changes both ends by either change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from adaptertool.architectures.conversion import Piece, architecture_of, into_memory, rules_for, ties_of
from adaptertool.codecs.tensors import read_tensor
from adaptertool.errors import InputError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.jsonfile import objects
from adaptertool.files.reader import Inputs, open_input, read_exact, same_bytes
from adaptertool.kinds import kind_of
from adaptertool.kinds.lora import A, B
from adaptertool.resolution.correspondence import FLAG as FLAG
from adaptertool.resolution.names import Names
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import Ref

STAY_TIED = ", and stay tied"
STORED_APART = f"stored apart, and config.json says {FLAG}: false"


def ends_of(base: Checkpoint, names: Names) -> Mapping[str, str] | None:
    """The ends that are tied and not stored -> the tensor that they are tied to. None where that is not known.

    It is known for an architecture of the table, if the config ties all of its ends or none, and none is stored twice.
    """
    config = base.config or {}
    architecture, said = architecture_of(config), [part[FLAG] for part in objects(config) if FLAG in part]
    ties = ties_of(architecture)
    if ties == {} or (config.get(FLAG) is False and not any(said)):
        return {}
    if ties is None or base.is_file or not all(flag is True for flag in said):
        return None
    ends = {}
    for end, source in ties.items():
        try:
            stored, pieces = names.find(end), names.find(source)
        except InputError:
            return None
        plain = into_memory(rules_for(architecture), end) == [(end, Piece(end))]  # loaders then find it by this name
        if stored or pieces is None or len(pieces) > 1 or pieces[0].cut or source in ties or not plain:
            return None
        ends[end] = pieces[0].disk
    return ends


def decide(
    edits: dict[str, list[Edit]],
    ends: Mapping[str, str],
    resized: Mapping[str, Ref],
    tying: Collection[int],
    amended: Callable[[str, Sequence[Edit]], list[Edit]] = lambda _, own: list(own),
    combined_alike: Callable[[str, str], bool] = lambda _, __: True,
) -> tuple[frozenset[str], list[str]]:
    """Which ends must be stored on their own, with what to say of it; `edits` then has their changes.

    A change that is the same for both ends is made once. What an adapter does at one end only is meant for both if it
    says that it ties its changes (`tying`), or where it is trained token rows: PEFT saves those once. Then the edits
    of each end are `amended`, as they are meant for its name. Ends that are changed alike come apart all the same where
    these changes are not `combined_alike`.
    """
    _share(edits, ends, tying)
    for name in {*ends, *ends.values()} & edits.keys():
        edits[name] = amended(name, edits[name])
    apart, notes = [], []
    for end, source in ends.items():
        head, own = edits.pop(end, []), edits.get(source, [])
        same_base = end not in resized or _same_numbers(resized[end], resized[source])
        combined = not (head or own) or combined_alike(end, source)
        if not (same_base and combined) or len(head) != len(own) or not all(map(_alike, head, own)):
            edits[end] = head
            apart.append(end)
        elif not all(map(_on_rows, head)):
            notes.append(f"{shown(end)} and {shown(source)} are changed alike{STAY_TIED}")
    if not apart:
        return frozenset(), notes
    for end, source in ends.items():  # the flag is one for all
        if end not in apart:
            edits[end] = list(edits.get(source, ()))
    notes.append(
        f"{', '.join(map(shown, ends))} {'was' if len(ends) == 1 else 'were'} tied to "
        f"{', '.join(map(shown, dict.fromkeys(ends.values())))}, and both are not changed alike: "
        f"{STORED_APART}"
    )
    return frozenset(ends), notes


def _share(edits: dict[str, list[Edit]], ends: Mapping[str, str], tying: Collection[int]) -> None:
    """Give all tied ends what an adapter does at one of them and means for all. What it does at an end itself stays."""
    for source in dict.fromkeys(ends.values()):
        group = [source, *(end for end, other in ends.items() if other == source)]
        for adapter, on_rows in {(edit.adapter, _on_rows(edit)) for name in group for edit in edits.get(name, ())}:
            own = {
                name: [edit for edit in edits.get(name, ()) if (edit.adapter, _on_rows(edit)) == (adapter, on_rows)]
                for name in group
            }
            meant = next(filter(None, own.values())) if adapter in tying else own[source] if on_rows else []
            for name in group:
                if meant and not own[name]:
                    edits[name] = sorted([*edits.get(name, ()), *meant], key=_order)


def _order(edit: Edit) -> tuple[int, bool, bool]:
    return edit.adapter, not kind_of(edit).replaces, _on_rows(edit)


def _on_rows(edit: Edit) -> bool:
    return edit.view is not None and isinstance(edit.view.rows, tuple)


def _alike(one: Edit, other: Edit) -> bool:
    """Whether two edits are the same change: of an embedding, and of a head, which has it transposed."""
    numbers = [(e.kind, e.adapter, e.scale, e.weight, e.on_base, e.view) for e in (one, other)]
    if numbers[0] != numbers[1] or one.factors.keys() != other.factors.keys():
        return False
    if one.transposed == other.transposed:
        return all(_same_numbers(ref, other.factors[role]) for role, ref in one.factors.items())
    swapped = {A: B, B: A}
    return kind_of(one).is_product and all(
        _same_numbers(one.factors[role], other.factors[swap], transposed=True) for role, swap in swapped.items()
    )


def _same_numbers(one: Ref, other: Ref, *, transposed: bool = False) -> bool:
    """Whether the stored bytes are the same, one of them perhaps transposed (then they are read whole: factors)."""
    if one == other:
        return True
    if one.made is not None or other.made is not None:
        return _same_when_made(one, other, transposed=transposed)
    if one.spec.dtype != other.spec.dtype or one.shape != other.shape[:: -1 if transposed else 1]:
        return False
    if one.columns is not None or other.columns is not None:
        return False
    if not transposed:
        return same_bytes(one, other)

    kind = f"u{one.spec.nbytes // max(one.spec.numel, 1)}"
    arrays = []
    for ref in (one, other):
        with open_input(ref.path) as file:
            data = read_exact(file, ref.offset, ref.spec.nbytes)
        arrays.append(np.frombuffer(data, kind).reshape(ref.spec.shape))
    return bool((arrays[0] == arrays[1].T).all())


def _same_when_made(one: Ref, other: Ref, *, transposed: bool) -> bool:
    """The same of tensors of which one lies in no file: by their numbers."""
    if one.shape != other.shape[:: -1 if transposed else 1]:
        return False
    arrays = []
    for ref in (one, other):
        stamps = {}
        for source in ref.stored:
            with open_input(source.path) as file:
                stamps[source.path] = file.stamp
        with Inputs(stamps) as inputs:
            arrays.append(read_tensor(inputs, ref, 0, ref.spec.numel).reshape(ref.shape))
    return bool((arrays[0] == (arrays[1].T if transposed else arrays[1])).all())
