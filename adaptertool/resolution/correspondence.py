"""Which tensor of a checkpoint is which of the base: the one place that decides it for all commands.

Equal names first. Then what transformers has in memory of both (architectures/conversion.py): so checkpoints of its
versions 4 and 5 correspond, and gamma and beta of norms to weight and bias. Then one change of prefix for all that is
left (resolution/prefix.py). Values are moved whole, never cut or joined. What one side may leave out: ends that are
tied, and buffers that models compute for themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adaptertool.architectures.conversion import (
    Piece,
    Rule,
    architecture_of,
    into_memory,
    newest_parameter,
    rules_for,
    ties_of,
)
from adaptertool.architectures.mlx import require_comparable
from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.jsonfile import objects
from adaptertool.files.reader import same_bytes
from adaptertool.patterns import regex
from adaptertool.resolution.prefix import Prefix, changes
from adaptertool.spec.tensors import Ref, TensorSpec

FLAG = "tie_word_embeddings"
Config = Mapping[str, Any] | None

# What a tensor is in memory: that tensor, or parts of some.
Meaning = tuple[tuple[str, Piece], ...]

# Buffers that models compute for themselves: older checkpoints hold them, and who loads and saves one may drop them.
_BUFFER = regex(
    r"(\brotary_emb(eddings)?\.inv_freq|\bposition_ids|\bembeddings\.token_type_ids|\b(attn|attention)\.masked_bias)$"
)
_MASK = regex(r"\b(attn|attention)\.(bias|causal_mask)$")  # (1, 1, n, n), as GPT-2 has it

# One embedding for both halves of a model, whatever its config says: T5 and its kin. Older checkpoints hold copies.
_SHARED = regex(r"(.*\.)?(?:encoder|decoder)\.embed_tokens\.weight")
_T5, _OF_T5 = regex(r"(M|UM|Long)?T5For|SwitchTransformersFor"), {"lm_head.weight": "shared.weight"}


class Counterparts(NamedTuple):
    """What another checkpoint has for the tensors of the base."""

    tensors: Mapping[str, Ref]  # by the names of the base, which their specs have too
    missing: Mapping[str, Ref]  # only the base has them
    extra: Mapping[str, Ref]  # only the other has them
    copies: tuple[tuple[Ref, Ref], ...]  # an end that the base leaves out since it is tied, and what it is tied to
    notes: tuple[str, ...]


def aligned(names: Collection[str], config: Config, other: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """`other` with its tensors under the names that a checkpoint of `names` and `config` has for them; and a note.

    Raises MismatchError where a name could be several.
    """
    if other.components:
        return _by_component(names, config, other)
    left = [name for name in names if name not in other.tensors]
    more = [name for name in other.tensors if name not in names]
    if not left or not more:
        return other, []
    their_config = other.config if architecture_of(other.config) else config
    ours, theirs = meanings(left, config), meanings(more, their_config)
    found, how = _same(ours, theirs, other), ""
    taken = set(found.values())
    ours = {name: meaning for name, meaning in ours.items() if name not in taken}
    theirs = {name: meaning for name, meaning in theirs.items() if name not in found}
    if ours and theirs:
        matched = [*(name for name in other.tensors if name in names), *found, *taken]
        families = {str(one.get("model_type") or "") for one in (config, their_config) if one} or {""}
        tried = {
            change: pairs
            for change in _changes(ours, theirs, families)
            if not any(name.startswith(change.whole) for name in matched)  # no mixture of with and without
            and (pairs := _same(ours, {name: _changed(own, change) for name, own in theirs.items()}, other))
        }
        most = max(map(len, tried.values()), default=0)
        best = {change: pairs for change, pairs in tried.items() if len(pairs) == most}
        if any(pairs != next(iter(best.values())) for pairs in best.values()):
            fits = " and with ".join(sorted(map(str, best)))
            raise MismatchError(f"the names of {other.path} fit with {fits}; say which with --rename")
        for change, pairs in list(best.items())[:1]:
            found, how = found | pairs, f", with {change}"
    if not found:
        return other, []
    theirs_name, ours_name = next(iter(found.items()))
    note = (
        f"{other.path}: {len(found)} tensors are found by other names{how}: {shown(ours_name)} is "
        f"{shown(theirs_name)} there{' ...' if len(found) > 1 else ''}"
    )
    return other.renamed(found), [note]


def _by_component(names: Collection[str], config: Config, other: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """The same for a pipeline: each of its models by itself."""
    found: dict[str, str] = {}
    notes: list[str] = []
    for folder in other.components:
        start, parts = f"{folder}.", (config or {}, other.config or {})
        ours = {name.removeprefix(start): None for name in names if name.startswith(start)}
        theirs = {name.removeprefix(start): ref for name, ref in other.tensors.items() if name.startswith(start)}
        part = dataclasses.replace(
            other, path=other.path / folder, tensors=theirs, config=parts[1].get(folder), components=()
        )
        named, more = aligned(ours, parts[0].get(folder), part)
        found |= {start + old: start + new for old, new in zip(theirs, named.tensors, strict=True)}
        notes += more
    return other.renamed(found), notes


def with_tied(names: Mapping[str, Ref], config: Config, other: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """`other`, aligned with a checkpoint of these tensors and `config`, with the ends that it leaves out since they are
    tied: each is what it is tied to. And which these are. Where no config says so, the checkpoint that holds both ends
    does: they are the same there."""
    if all(name in other.tensors for name in names):
        return other, []
    every = (*names, *(name for name in other.tensors if name not in names))
    said = bool(_flags(config) or _flags(other.config))
    ends = {
        end: other.tensors[source].renamed(end)
        for end, source in ties_in(every, other.config or config, unsaid=all(_flags(config))).items()
        if end in names and end not in other.tensors and source in other.tensors
        if said or _is_copy(names[end], names.get(source))
    }
    return dataclasses.replace(other, tensors={**other.tensors, **ends}), list(ends)


def counterparts(base: Checkpoint, other: Checkpoint) -> Counterparts:
    """What `other` has for each tensor of the base. Raises MismatchError as `aligned` does."""
    require_comparable(base, other)
    other, notes = aligned(base.tensors, base.config, other)
    other, tied = with_tied(base.tensors, base.config, other)
    tensors = {name: ref for name, ref in other.tensors.items() if name in base.tensors}
    missing = {name: ref for name, ref in base.tensors.items() if name not in tensors}
    extra = {name: ref for name, ref in other.tensors.items() if name not in tensors}
    copies: list[tuple[Ref, Ref]] = []
    for end, source in ties_in((*base.tensors, *extra), base.config, unsaid=True).items() if extra else ():
        if end in extra and source in tensors:
            copies.append((extra[end], tensors[source]))
            tied.append(end)
    buffers = [name for name, ref in (missing | extra).items() if is_buffer(ref.spec)]
    for some, why in ((tied, "it is tied"), (buffers, "models compute it themselves")):
        if some:
            notes.append(f"stored in one of {base.path} and {other.path} only, since {why}: {_listed(some)}")
    known = {*tied, *buffers}
    missing, extra = ({name: ref for name, ref in some.items() if name not in known} for some in (missing, extra))
    return Counterparts(tensors, missing, extra, tuple(copies), tuple(notes))


def ties_in(names: Collection[str], config: Config, *, unsaid: bool) -> Mapping[str, str]:
    """The ends among these names that a checkpoint of this config may leave out, since they are tied -> the names that
    they are tied to. unsaid: whether a config without the flag ties, as that of transformers 4 does."""
    known = frozenset(names)
    ties = {
        name: source
        for name in names
        if (match := _SHARED.fullmatch(name)) and (source := f"{match[1] or ''}shared.weight") in known
    }
    architecture = architecture_of(config)
    if not all(_flags(config) or [unsaid]):
        return ties
    in_memory = {own[0][0]: name for name, own in meanings(names, config).items() if own[0][1] == Piece("")}
    for end, source in (ties_of(architecture) or (_OF_T5 if _T5.match(architecture) else {})).items():
        ours, theirs = (in_memory.get(one) or in_memory.get(one.partition(".")[2]) for one in (end, source))
        if ours and theirs:
            ties[ours] = theirs
    return ties


def _is_copy(end: Ref, source: Ref | None) -> bool:
    return source is not None and end.spec[1:] == source.spec[1:] and same_bytes(end, source)


def _flags(config: Config) -> list[bool]:
    return [part[FLAG] is True for part in objects(config or {}) if FLAG in part]


def is_buffer(spec: TensorSpec) -> bool:
    """Whether models compute a tensor for themselves, whatever a checkpoint holds."""
    return bool(_BUFFER.search(spec.name) or (_MASK.search(spec.name) and len(spec.shape) == 4))


def meanings(names: Iterable[str], config: Config) -> dict[str, Meaning]:
    """What the tensors are in memory; without those whose numbers are other there, or may be."""
    rules, found = _rules(config), {}
    for name in names:
        newest = newest_parameter(name)
        loaded = into_memory(rules, newest)
        if not any(_changes_numbers(rule, newest, memory) for rule in rules for memory, _ in loaded):
            found[name] = tuple((memory, piece._replace(disk="")) for memory, piece in loaded)
    return found


def _changes_numbers(rule: Rule, name: str, memory: str) -> bool:
    return rule.matches(memory) if rule.target is None else rule.turned and rule.matches(name) and name != memory


def _rules(config: Config) -> Sequence[Rule]:
    try:
        return rules_for(architecture_of(config))
    except UnsupportedError:  # then the names that are the same in both are known, and no others
        return ()


def _same(ours: Mapping[str, Meaning], theirs: Mapping[str, Meaning], other: Checkpoint) -> dict[str, str]:
    """Names of the other -> names of ours that mean the same. Raises MismatchError where several do."""
    by_meaning: dict[Meaning, tuple[list[str], list[str]]] = {}
    for side, names in enumerate((ours, theirs)):
        for name, meaning in names.items():
            by_meaning.setdefault(meaning, ([], []))[side].append(name)
    found = {}
    for here, there in by_meaning.values():
        if here and there:
            if len(here) > 1 or len(there) > 1:
                raise MismatchError(
                    f"{', '.join(map(shown, there))} of {other.path} can be {', '.join(map(shown, here))} of the base; "
                    "say which with --rename"
                )
            found[there[0]] = here[0]
    return found


def _changes(ours: Mapping[str, Meaning], theirs: Mapping[str, Meaning], families: Iterable[str]) -> Iterator[Prefix]:
    known, names = ({memory for meaning in some.values() for memory, _ in meaning} for some in (ours, theirs))
    for family in sorted(families):
        yield from changes(names, known, family)


def _changed(meaning: Meaning, change: Prefix) -> Meaning:
    return tuple((change(memory), piece) for memory, piece in meaning)


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(shown, list(names)[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
