"""Names in an adapter -> names on the disk.

Since transformers 5 the modules of a model in memory, which an adapter names, may be called otherwise than the
tensors on the disk. The rules are data: names.json, made by tools/derive_names.py from transformers' own conversions,
one list for each architecture (config.json: architectures). A rule renames disk -> memory, as on loading.

An adapter may also come from the model with a head and the base from the one without, or the reverse: then all
names of one differ from the other's by a first part. And adapters made under transformers 4 name what is on the disk.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from adaptertool.errors import MismatchError, UnsupportedError, UsageError, shown
from adaptertool.formats.adapter import Adapter

_BASE_PREFIXES = frozenset({"model", "transformer", "backbone", "bert", "roberta", "deberta"})


@dataclass(frozen=True, slots=True)
class Rule:
    """One renaming, as transformers does it (core_model_loading.WeightTransform.rename_source_key)."""

    regex: re.Pattern[str]
    target: str | None  # None marks a tensor whose numbers are other in memory than on the disk
    scope: str | None = None  # acts below this submodule only
    base: str | None = None  # which may itself stand below this prefix

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

    def __call__(self, name: str) -> str:
        matched, target = self._match(name), self.target
        if matched is None or target is None:
            return name
        prefix, rest, match = matched
        if r"\1" in target:
            branch = next(key for key, value in match.groupdict().items() if value is not None)
            target = target.replace(r"\1", match.group(self.regex.groupindex[branch] + 1))
        return prefix + rest.replace(match.group(0), target, 1)


@functools.cache
def _table() -> Mapping[str, Any]:
    table: dict[str, Any] = json.loads(files("adaptertool").joinpath("names.json").read_text())
    return table


def rules_for(config: Mapping[str, Any] | None) -> list[Rule]:
    """The renamings of the architecture that config.json names; none where it names none that is known."""
    architectures = (config or {}).get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        return []
    number = _table()["architectures"].get(architectures[0])
    if number is None:
        return []
    if number < 0:
        raise UnsupportedError(
            f"adapters on {shown(architectures[0])} are not supported yet: transformers renames its tensors on loading "
            "in a way that is not known here"
        )
    return [
        Rule(re.compile(rule["regex"]), rule["target"], rule.get("scope"), rule.get("base"))
        for rule in _table()["lists"][number]
    ]


class Names:
    """Finds the tensors on the disk that names mean. Made once per base."""

    def __init__(self, on_disk: Sequence[str], config: Mapping[str, Any] | None) -> None:
        self._disk = frozenset(on_disk)
        family = (config or {}).get("model_type")
        self._family = family if isinstance(family, str) else ""
        self._memory: dict[str, list[str]] = {}
        self._converted: set[str] = set()
        if rules := rules_for(config):
            marks = [rule for rule in rules if rule.target is None]
            for name in on_disk:
                renamed = functools.reduce(lambda text, rule: rule(text), rules, name)
                self._memory.setdefault(renamed, []).append(name)
                if any(mark.matches(renamed) for mark in marks):
                    self._converted.add(name)

    def find_all(self, wanted: Sequence[tuple[str, bool]]) -> tuple[list[str | None], str | None]:
        """The disk names of an adapter's (name, saved whole?) pairs, None where there is none; and a note.

        Where none of the changed layers is found as it stands, one change of prefix is tried for all of them: that of
        the model with a head, added or stripped. Saved tensors (a head) may stand outside of it. A prefix that names a
        part of a model (vision_model, decoder) is never touched: the other part may have the same shapes.
        Raises MismatchError where a name, or the prefix, could mean several things.
        """
        exact = [self._find(name) for name, _ in wanted]
        missing = [name for (name, _), disk in zip(wanted, exact, strict=True) if disk is None]
        if not missing or any(disk and not saved for (_, saved), disk in zip(wanted, exact, strict=True)):
            return exact, None
        fitting = {}
        for note, change in self._changes(missing):
            found = [disk or self._find(change(name)) for (name, _), disk in zip(wanted, exact, strict=True)]
            if None not in found:
                fitting[note] = found
        if len(fitting) > 1:
            raise MismatchError(f"the adapter fits with {' and with '.join(sorted(fitting))}; say which with --rename")
        if not fitting:
            return exact, None
        ((note, found),) = fitting.items()
        return found, f"names fit with {note}"

    def _find(self, name: str) -> str | None:
        if not self._memory:
            return name if name in self._disk else None
        found = {*self._memory.get(name, ()), *([name] if name in self._disk else ())}
        if len(found) > 1:
            raise MismatchError(
                f"{shown(name)} can mean {', '.join(map(shown, sorted(found)))}; say which with --rename"
            )
        if converted := found & self._converted:
            raise UnsupportedError(
                f"{shown(min(converted))} is not stored as the model has it in memory (transposed, permuted or "
                "interleaved on loading); adapters on such a tensor are not supported yet"
            )
        return next(iter(found), None)

    def _changes(self, missing: Sequence[str]) -> Iterator[tuple[str, Callable[[str], str]]]:
        """The changes of prefix that could be meant, each with what to say of it."""
        firsts = {name.partition(".")[0] for name in missing}
        if len(firsts) == 1 and self._is_base_prefix(first := firsts.pop()):
            yield f"the prefix {shown(first)} stripped", lambda name: name.partition(".")[2]
        for first in sorted({disk.partition(".")[0] for disk in self._disk}):
            if self._is_base_prefix(first):
                yield f"the prefix {shown(first)} added", functools.partial("{}.{}".format, first)

    def _is_base_prefix(self, part: str) -> bool:
        """Whether models with a head keep the model without one under this name: "model", or after the family."""
        family = self._family.replace("-", "").replace("_", "")
        return part in _BASE_PREFIXES or (len(part) > 2 and family.startswith(part.replace("_", "")))


def rename(adapter: Adapter, renames: Sequence[str]) -> Adapter:
    """The adapter with the names of its tensors changed by each `regex=>replacement` in turn, as by re.sub.

    Raises UsageError for a renaming that is malformed, or changes nothing.
    """
    modules = list(adapter.modules)
    for text, (pattern, replacement) in zip(renames, _parse(renames), strict=True):
        try:
            targets = [pattern.sub(replacement, module.target) for module in modules]
        except (re.error, IndexError) as error:
            raise UsageError(f"the renaming {text!r} has no valid replacement: {error}") from error
        if all(target == module.target for target, module in zip(targets, modules, strict=True)):
            raise UsageError(f"the renaming {text!r} changes no name of {adapter.path}")
        modules = [dataclasses.replace(module, target=target) for target, module in zip(targets, modules, strict=True)]
    return dataclasses.replace(adapter, modules=tuple(modules))


def _parse(texts: Sequence[str]) -> list[tuple[re.Pattern[str], str]]:
    renames = []
    for text in texts:
        pattern, arrow, replacement = text.partition("=>")
        if not arrow:
            raise UsageError(f"a renaming is 'regex=>replacement', not {text!r}")
        try:
            renames.append((re.compile(pattern), replacement))
        except re.error as error:
            raise UsageError(f"the renaming {text!r} has no valid regex: {error}") from error
    return renames
