"""Names in an adapter -> tensors on the disk.

An adapter names modules as its model had them in memory (architectures/conversion.py), or, from before transformers 5,
as they are on the disk. It may also come from the model with a head and the base from the one without, or the reverse:
then all names of one differ from the other's by a first part. And projections may be fused on one side and split on the
other.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptertool.architectures.conversion import (
    Memory,
    Part,
    Piece,
    Pieces,
    architecture_of,
    expert_layout,
    into_memory,
    other_parameters,
    rules_for,
)
from adaptertool.architectures.flat import without_prefix
from adaptertool.architectures.gguf import onto
from adaptertool.architectures.gguf_experts import experts_of, stack_in_gguf
from adaptertool.architectures.mlx import LAYOUT, of_one_expert
from adaptertool.errors import InputError, MismatchError, UnsupportedError, shown
from adaptertool.patterns import regex
from adaptertool.resolution.flat_names import FlatNames
from adaptertool.resolution.fused import EXPERT, FUSED, FUSED_FAMILIES, IN_FUSED, OTHER_FUSED, split
from adaptertool.resolution.prefix import Prefix, changes

_NUMBERED = regex(r"(.*\.experts)\.(\d{1,9})\.([^.]*)\.weight")


class Names:
    """Finds the tensors on the disk that names mean. Made once per base."""

    def __init__(
        self, on_disk: Sequence[str], config: Mapping[str, Any] | None, gguf: Mapping[str, Any] | None = None
    ) -> None:
        """gguf: the fields of a GGUF file"""
        self._disk = frozenset(on_disk)
        family = (config or {}).get("model_type")
        self._family = family if isinstance(family, str) else ""
        self._config, self._gguf, architecture = config, gguf, architecture_of(config)
        self.layout = expert_layout(architecture) if gguf is None else LAYOUT
        self._rules = rules_for(architecture)
        self._memory = Memory(on_disk, self._rules)
        self._across = onto(config, gguf)
        self._flat = FlatNames(lambda: self.known)

    def find_all(self, wanted: Sequence[tuple[str, bool]]) -> tuple[list[Pieces | None], Prefix | None]:
        """What is on the disk of an adapter's (name, saved whole?) pairs, None where there is nothing.

        One change of prefix is tried for all that is not found as it stands: that of the model with a head or of a
        tower, added or stripped (resolution/prefix.py), unless layers that are found begin as those do; saved tensors
        may. Raises MismatchError where a name, or the prefix, could mean several things."""
        plain = self._disk if self._memory.keeps_names else ()
        exact = [(Piece(name),) if name in plain else self.find(name) for name, _ in wanted]
        if None not in exact:
            return exact, None
        both = list(zip(wanted, exact, strict=True))
        missing = [name for (name, _), disk in both if disk is None]
        held = {name.partition(".")[0] for (name, saved), disk in both if disk and not saved}
        fitting: dict[tuple[Pieces | None, ...], Prefix] = {}
        for change in self._changes(missing):
            if not held.isdisjoint(one.partition(".")[0] for name in missing for one in (name, change(name))):
                continue  # no mixture of with and without
            found = tuple(disk or self.find(change(name)) for (name, _), disk in both)
            if None not in found:
                fitting.setdefault(found, change)
        if len(fitting) > 1:
            raise MismatchError(
                f"the adapter fits with {' and with '.join(sorted(map(str, fitting.values())))}; say which with "
                "--rename"
            )
        return next(((list(found), change) for found, change in fitting.items()), (exact, None))

    def has(self, name: str) -> bool:
        """Whether a name means anything here, as it stands or by a change of prefix."""
        try:
            return any(self.find(meant) for meant in (name, *(change(name) for change in self._changes([name]))))
        except InputError:
            return True

    def find(self, name: str) -> Pieces | None:
        return self._by_path(name) or self._by_flat_name(name) or self._in_other_container(name)

    def _by_path(self, name: str) -> Pieces | None:
        return (
            self._as_named(name)
            or self._of_other_age(name)
            or self._one_expert(name)
            or self._in_stack(name)
            or self._cut_from_fused(name)
            or self._joined(name)
        )

    def _in_other_container(self, name: str) -> Pieces | None:
        """What has that name in GGUF, or in a GGUF file what has it in a checkpoint."""
        for found in self._across(name):
            if pieces := self._as_named(found.name):
                if len(pieces) > 1 or (piece := pieces[0]).cut is not None or piece.part is not None:
                    raise UnsupportedError(
                        f"{shown(name)} is {shown(found.name)} here, which is stored in parts, or as one; across GGUF "
                        "that is not supported yet"
                    )
                return (piece._replace(change=found.change),)
        if (stack := stack_in_gguf(None, self._gguf, name)) and stack[0] in self._disk:
            return (Piece(stack[0], cut=Part(expert=stack[1])),)
        own = [self._by_path(one) or () for one in experts_of(self._config, name)]
        pieces = tuple(one[0]._replace(expert=at) for at, one in enumerate(own) if one)
        return pieces if pieces and len(pieces) == len(own) else None

    def _by_flat_name(self, name: str) -> Pieces | None:
        """The pieces of the parameter that has this name where each dot of a path is written as _."""
        meant = {parameter: pieces for parameter in self._flat(name) if (pieces := self._by_path(parameter))}
        if len(set(meant.values())) > 1:
            raise MismatchError(
                f"{shown(name)} can mean {', '.join(map(shown, sorted(meant)))}; say which with --rename"
            )
        return next(iter(meant.values()), None)

    def parameter(self, name: str) -> str | None:
        """The parameter of the model that a name means, by the name that it has in memory, or else on the disk: the
        name itself, or the one that a flat name stands for. None where it means parts or several of them, or what has
        another name."""
        if without_prefix(name) is None or name in self.known:
            return name if name in self.known else None
        held = self._flat(name)
        whole = [one for one in held if one in self._memory.names] or [one for one in held if one in self._disk]
        return next(iter(whole or [one for one in held if len(self._by_path(one) or ()) == 1]), None)

    def in_memory(self, disk: str) -> str:
        """The name in memory of a tensor on the disk that is all of a parameter; its own where it is not."""
        ((name, piece), *more) = into_memory(self._rules, disk)
        return name if not more and piece == Piece(disk) else disk

    @property
    def known(self) -> frozenset[str]:
        """The names of all tensors, on the disk and in memory."""
        return self._disk.union(self._memory.names)

    def _as_named(self, name: str) -> Pieces | None:
        """The pieces of a tensor by its name on the disk, or the one that it has in memory."""
        if self._memory.keeps_names and name in self._disk:
            return (Piece(name),)
        pieces = self._memory.of(name)
        joined = tuple(piece for piece in pieces if piece.part is not None)
        found = {(piece,) for piece in pieces if piece.part is None} | ({joined} if joined else set())
        if name in self._disk:
            found.add((Piece(name),))
        if len(found) > 1:
            disks = sorted({piece.disk for candidate in found for piece in candidate})
            raise MismatchError(f"{shown(name)} can mean {', '.join(map(shown, disks))}; say which with --rename")
        result = next(iter(found), None)
        if result and (converted := {piece.disk for piece in result} & self._memory.converted):
            raise UnsupportedError(
                f"{shown(min(converted))} is not stored as the model has it in memory (transposed, permuted or "
                "interleaved on loading); adapters on such a tensor are not supported yet"
            )
        return result

    def _of_other_age(self, name: str) -> Pieces | None:
        """The pieces of a tensor by the name that older checkpoints have, of a base that has the newer one; or with
        gamma for weight."""
        ((memory, piece), *more) = into_memory(self._rules, name)
        if memory != name and not more and piece == Piece(name):
            return self._as_named(memory)
        return next((found for other in other_parameters(name) if (found := self._as_named(other))), None)

    def _one_expert(self, name: str) -> Pieces | None:
        """One expert of a fused tensor, as adapters from before transformers 5 name it."""
        if (match := EXPERT.fullmatch(name)) is None:
            return None
        prefix, expert, projection = match[1], int(match[2]), match[3]
        fused, part, parts = IN_FUSED[projection]
        meant = [(f"{prefix}.{fused}", part, parts), (f"{prefix}.{projection}", 0, 1)]
        for memory, piece in into_memory(self._rules, name):
            if piece.part is not None:
                meant.append((memory, piece.part, piece.parts))
        for memory, part, parts in meant:
            if not (pieces := self._as_named(memory)):
                continue
            if pieces[0].part is not None:
                return tuple(Piece(one.disk) for one in pieces if (one.expert, one.part) == (expert, part)) or None
            if parts > 1 and self.layout is None:
                raise UnsupportedError(
                    f"{shown(name)} is stored inside {shown(pieces[0].disk)}, and how gate and up lie in there is not "
                    "known for this architecture"
                )
            interleaved = parts > 1 and not (self.layout and self.layout.concatenated)
            return (Piece(pieces[0].disk, cut=Part(part, parts, expert, interleaved=interleaved)),)
        return None

    def _in_stack(self, name: str) -> Pieces | None:
        """One expert, as MLX calls it, or of a tensor in which MLX has them all."""
        for other, expert in of_one_expert(name):
            if expert is None and (found := self._as_named(other) or self._one_expert(other)):
                return found
            if expert is not None and other in self._disk:
                return (Piece(other, cut=Part(expert=expert)),)
        return None

    def _cut_from_fused(self, name: str) -> Pieces | None:
        """A projection that is stored together with others."""
        prefix, projection, kind = split(name)
        known = self._family in FUSED_FAMILIES
        for fused, parts in FUSED.items():
            if projection in parts and known and (disk := f"{prefix}{fused}.{kind}") in self._disk:
                return (Piece(disk, cut=Part(parts.index(projection), len(parts), grouped=fused == "qkv_proj")),)
        for fused in (*FUSED, *OTHER_FUSED) if any(projection in parts for parts in FUSED.values()) else ():
            if (disk := f"{prefix}{fused}.{kind}") in self._disk:
                raise UnsupportedError(
                    f"{shown(name)} seems to be stored inside {shown(disk)}; in which order the parts lie in there is "
                    "not known for this architecture"
                )
        return None

    def _joined(self, name: str) -> Pieces | None:
        """A fused projection whose parts are stored apart, also those of every expert."""
        prefix, projection, kind = split(name)
        if projection in FUSED:
            parts = [f"{prefix}{part}.{kind}" for part in FUSED[projection]]
            if all(part in self._disk for part in parts):
                return tuple(Piece(disk, part, len(parts)) for part, disk in enumerate(parts))
        prefix, _, projection = name.rpartition(".")
        own = FUSED.get(projection, (projection,))
        pieces = []
        if prefix.endswith(".experts"):
            for expert in itertools.count():
                disks = [f"{prefix}.{expert}.{part}.weight" for part in own]
                if not all(disk in self._disk for disk in disks):
                    if any(self._last_expert.get((prefix, part), -1) >= expert for part in own):
                        raise MismatchError(
                            f"{shown(name)} means all of {shown(prefix)}, but {shown(disks[0])} and its like are "
                            "not all there, while some of later experts are"
                        )
                    break
                pieces += [Piece(disk, part, len(own), expert) for part, disk in enumerate(disks)]
        return tuple(pieces) or None

    @functools.cached_property
    def _last_expert(self) -> Mapping[tuple[str, str], int]:
        """(prefix, projection) -> the highest number of an expert that has it."""
        last: dict[tuple[str, str], int] = {}
        for disk in self._disk:
            if match := _NUMBERED.fullmatch(disk):
                key = match[1], match[3]
                last[key] = max(last.get(key, -1), int(match[2]))
        return last

    def _changes(self, missing: Sequence[str]) -> Iterator[Prefix]:
        """The changes of prefix that could be meant."""
        return changes(missing, self.known.union(self._across.others), self._family)
