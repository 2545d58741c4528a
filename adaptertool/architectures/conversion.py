"""What a model has in memory of what is on the disk.

Since transformers 5 the tensors of a model in memory, which an adapter names, may be called otherwise than those on
the disk, be joined from several (experts, one by one on the disk) or cut from one (fused projections). The rules are
data: names.json, made by tools/derive_names.py from transformers' own conversions, one list for each architecture
(config.json: architectures). A rule leads from disk to memory, as on loading.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.architectures.change import Change
from adaptertool.errors import UnsupportedError, shown
from adaptertool.records import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a tensor on the disk is meant."""

    index: int = 0
    count: int = 1  # parts along the rows of the weight
    expert: int | None = None  # of a fused tensor: (E, out, in), or (E, in, out)
    interleaved: bool = False  # row by row in turn, not one part after the other
    grouped: bool = False  # q, k, v: of which k and v may be smaller
    more: int = 0  # parts that follow and are meant too
    swapped: bool = False  # all of it, the second half of its rows before the first
    turned: bool = False  # all of it, transposed

    @property
    def end(self) -> int:
        """The number of the part after the last that is meant."""
        return self.index + 1 + self.more

    @property
    def whole(self) -> bool:
        """Whether all of the tensor is meant, though not as it is."""
        return self.swapped or self.turned

    def of(self, size: int) -> range:
        """The rows, of `size`, that are meant, where all parts are of equal size."""
        if self.interleaved:
            return range(self.index, size, self.count)
        return range(self.index * size // self.count, self.end * size // self.count)


class Piece(NamedTuple):
    """A tensor on the disk, as what it is of a tensor in memory: that tensor, a part of it, or what it is cut from."""

    disk: str
    part: int | None = None  # one of several that are joined along the rows, in this order
    parts: int = 1  # so many
    expert: int | None = None  # and these are the rows of that expert
    cut: Part | None = None
    change: Change | None = None  # of a base in another container than the adapter is for: how its numbers differ


Pieces = tuple[Piece, ...]

# As parameters were called, and are.
_OTHER_PARAMETERS = (
    (".gamma", ".weight"),
    (".beta", ".bias"),
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One renaming, as transformers does it (core_model_loading.WeightTransform.rename_source_key)."""

    regex: re.Pattern[str]
    target: str | None  # None marks a tensor whose numbers are other in memory than on the disk
    scope: str | None = None  # acts below this submodule only
    base: str | None = None  # which may itself stand below this prefix
    join: str | None = None  # several tensors become one: "rows", or "experts" with rows each
    cut: tuple[str, ...] | None = None  # one tensor becomes several of equal size, by these names
    turned: bool = False  # fused experts, transposed where the shape says so

    @property
    def renames(self) -> bool:
        return self.target is not None and self.join is None and self.cut is None

    def matches(self, name: str) -> bool:
        return self._match(name) is not None

    def _match(self, name: str) -> tuple[str, str, re.Match[str]] | None:
        prefix = ""
        if self.scope is not None:
            scope, base = (f"{part}." if part else "" for part in (self.scope, self.base))
            prefix = base + scope if name.startswith(base + scope) else scope
            if not name.startswith(prefix):
                return None
        rest = name[len(prefix) :]
        match = self.regex.search(rest)
        return None if match is None else (prefix, rest, match)

    def __call__(self, name: str, target: str | None = None) -> str:
        matched, target = self._match(name), target or self.target
        if matched is None or target is None:
            return name
        prefix, rest, match = matched
        if r"\1" in target:
            target = target.replace(r"\1", match.group(self.regex.groupindex[_branch(match)] + 1))
        return prefix + rest.replace(match.group(0), target, 1)

    def pieces(self, name: str, disk: str) -> list[tuple[str, Piece]]:
        """What `disk`, renamed to `name`, is in memory: (name in memory, which part of it)."""
        if self.cut is not None:
            count = len(self.cut)
            return [(self(name, target), Piece(disk, cut=Part(i, count))) for i, target in enumerate(self.cut)]
        matched = self._match(name)
        assert matched is not None
        expert = None
        if self.join == "experts":
            numbers = re.findall(r"(?<=\.)\d+(?=\.)", matched[2].group(0))
            if len(numbers) != 1:
                return [(name, Piece(disk))]
            expert = int(numbers[0])
        part, parts = int(_branch(matched[2])[1:]), len(self.regex.groupindex)
        return [(self(name), Piece(disk, part, parts, expert))]


def _branch(match: re.Match[str]) -> str:
    return next(key for key, value in match.groupdict().items() if value is not None)


@functools.cache
def _table() -> Mapping[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("names.json").read_text())
    return table


def architecture_of(config: Mapping[str, Any] | None) -> str:
    names = (config or {}).get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else ""


def rules_for(architecture: str) -> list[Rule]:
    """How the architecture that config.json names has in memory what is on the disk; nothing where it is not known.
    Raises UnsupportedError where transformers renames in a way that is not known."""
    number = _table()["architectures"].get(architecture)
    if number is None:
        return []
    if number < 0:
        raise UnsupportedError(
            f"adapters on {shown(architecture)} are not supported yet: transformers renames its tensors on loading "
            "in a way that is not known here"
        )
    return list(map(_rule, _table()["lists"][number]))


@functools.cache  # they have more expressions than `re` remembers
def all_rules() -> Sequence[list[Rule]]:
    """The rules of every architecture, each list once."""
    return [list(map(_rule, rules)) for rules in _table()["lists"]]


def _rule(fields: Mapping[str, Any]) -> Rule:
    scope, base, join, cut = map(fields.get, ("scope", "base", "join", "cut"))
    turned = fields.get("turned", False)
    return Rule(re.compile(fields["regex"]), fields["target"], scope, base, join, tuple(cut) if cut else None, turned)


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """How an architecture has its fused experts in memory. None: not as on the disk."""

    marked: bool | None  # is_transposed, which some versions of PEFT heed
    concatenated: bool  # gate, then up; else row by row in turn
    transposed: bool | None  # (E, in, out), not (E, out, in): Llama 4 is so without the mark


def expert_layout(architecture: str) -> ExpertLayout | None:
    layout = _table()["experts"].get(architecture)
    if layout is None:
        return None
    turned = any(rule.turned for rule in rules_for(architecture))
    return ExpertLayout(None if turned else layout[0], layout[1], None if turned else layout[2])


def ties_of(architecture: str) -> Mapping[str, str] | None:
    """The names in memory that are tied where the config says so -> the names that they are tied to.

    None where that is not known, or where the flag changes more than that.
    """
    ties: Mapping[str, str] | None = _table()["ties"].get(architecture)
    return ties


def into_memory(rules: Sequence[Rule], disk: str) -> list[tuple[str, Piece]]:
    """What becomes of a tensor on loading: (name in memory, which part of it), usually one."""
    name = functools.reduce(lambda text, rule: rule(text) if rule.renames else text, rules, disk)
    conversion = next((rule for rule in rules if (rule.join or rule.cut) and rule.matches(name)), None)
    return [(name, Piece(disk))] if conversion is None else conversion.pieces(name, disk)


def other_parameters(name: str) -> list[str]:
    """What older checkpoints call a parameter, or newer ones: gamma and beta of norms, and weight_g and weight_v of
    torch's older weight_norm. Loaders rename them."""
    return [
        name.removesuffix(end) + other
        for pair in _OTHER_PARAMETERS
        for end, other in (pair, pair[::-1])
        if name.endswith(end)
    ]


def newest_parameter(name: str) -> str:
    """The name with the newest of these endings."""
    return next((name.removesuffix(old) + new for old, new in _OTHER_PARAMETERS if name.endswith(old)), name)


class Memory:
    """All tensors of a model in memory, by name."""

    def __init__(self, on_disk: Sequence[str], rules: Sequence[Rule]) -> None:
        self._on_disk, self._rules = on_disk, rules
        # Where nothing is renamed a name on the disk means that tensor, and the table is made only if it is needed.
        self.keeps_names = not any(rule.renames or rule.target is None for rule in rules)

    def of(self, name: str) -> Sequence[Piece]:
        return self._pieces.get(name, ())

    @property
    def names(self) -> Collection[str]:
        """The names in memory, where there are rules."""
        return self._pieces.keys()

    @functools.cached_property
    def _pieces(self) -> Mapping[str, Sequence[Piece]]:
        pieces: dict[str, list[Piece]] = {}
        for disk in self._on_disk if self._rules else ():
            for name, piece in into_memory(self._rules, disk):
                pieces.setdefault(name, []).append(piece)
        return pieces

    @functools.cached_property
    def converted(self) -> frozenset[str]:
        """The tensors whose numbers are other in memory."""
        marks = [rule for rule in self._rules if rule.target is None]
        return frozenset(
            piece.disk
            for name, pieces in (self._pieces.items() if marks else ())
            for piece in pieces
            if any(mark.matches(name) for mark in marks)
        )
