"""YAML 1.2, of which JSON is a part, read strictly: text becomes data that knows where each of its values stands.

What surprises in YAML is refused by name, with its line: a key that stands twice, anchors, aliases and merge keys
(`&a`, `*a`, `<<`), tags (`!!str`), other versions (`%YAML 1.1`), keys that are no text. A scalar stays the text that is
written, and becomes a number, true or false where somebody asks for one: so `no`, `1_000`, `1e-3` and `2024` mean what
their place makes of them, and no number passes through a float.
Source: https://yaml.org/spec/1.2.2 (the core schema, section 10.3); parsed by ruamel.yaml, of which only the events of
its parser are used.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from adaptertool.errors import InputError, shown
from adaptertool.files.reader import is_folder, names_in, open_input, read_exact
from adaptertool.patterns import regex
from adaptertool.records import dataclass

MAX_BYTES = 2_000_000  # a recipe with a thousand steps has a tenth
MAX_DEPTH = 50  # of lists and maps within each other

_NUMBER = regex(r"[-+]?(?:0|[1-9][0-9]*|(?=\.[0-9]))(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?")
_LIKE_ONE = regex(r"[-+]?[0-9][0-9_]*|[-+]?0[ox][0-9a-fA-F_]+|[-+]?\.(?:inf|nan)", re.IGNORECASE)
_NULLS = ("", "~", "null", "Null", "NULL")
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")


class At(NamedTuple):
    """Where a value stands; line and column from 1, as editors count. Line 0: in no file, `file` alone says where."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Scalar:
    """A value that is no list and no map. plain: without quotes, so that it may be a number, true, false or nothing."""

    text: str
    at: At
    plain: bool = True

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULLS

    @property
    def truth(self) -> bool | None:
        """True or false, if it is one; `yes`, `on` and the like are text, as in YAML 1.2."""
        return self.text in _TRUE if self.plain and self.text in (*_TRUE, *_FALSE) else None

    @property
    def number(self) -> Decimal | None:
        """The exact number, if it is a finite one in decimal; 010, 0o17, 0x1f and 1_000 are none."""
        return Decimal(self.text) if self.plain and _NUMBER.fullmatch(self.text) else None

    @property
    def like_a_number(self) -> bool:
        """Whether some reader of YAML takes it for a number, and `number` is None."""
        return self.plain and self.number is None and bool(_LIKE_ONE.fullmatch(self.text))


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Node, ...]
    at: At


class Entry(NamedTuple):
    """A key of a map, and its value."""

    key: Scalar
    value: Node


@dataclass(frozen=True, slots=True)
class Table:
    """A map: its entries in their order, by the text of the key."""

    entries: dict[str, Entry]
    at: At


Node = Scalar | Items | Table


def load_yaml(path: Path) -> list[Node]:
    """The documents of a file. Raises InputError for what is not strict YAML 1.2, with line and column."""
    return load_with_text(path)[0]


def load_with_text(path: Path) -> tuple[list[Node], str]:
    """The same, and the text that they are, from one read of the file. Raises InputError."""
    if is_folder(path):
        inside = sorted(names_in(path, "*.yml") + names_in(path, "*.yaml"))
        hint = f", such as {path / inside[0]}" if inside else ""
        raise InputError(f"{path} is a folder; give a file of YAML{hint}")
    with open_input(path) as file:
        if file.size > MAX_BYTES:
            raise InputError(f"{path} has {file.size:,} bytes; YAML of more than {MAX_BYTES:,} is refused")
        content = bytes(read_exact(file, 0, file.size))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte {error.start} is not UTF-8 text") from error
    return [*_parsed(text, str(path))], text


@functools.lru_cache(2)  # a file is looked at to see whose it is, and then read by what it is for
def _parsed(text: str, file: str) -> tuple[Node, ...]:
    return tuple(parse_yaml(text, file))


def parse_yaml(text: str, file: str) -> list[Node]:
    """The documents of a text; `file` is what messages call it. Raises InputError for what is not strict YAML 1.2."""
    events = _events(text, file)
    found = []
    for event in events:
        if isinstance(event, DocumentStartEvent):
            if event.version not in (None, (1, 2)) or event.tags:
                raise InputError(f"{_at(event, file)}: this is read as YAML 1.2, without directives: leave out the %")
            found.append(_node(next(events), events, file, 0))
            if not isinstance(following := next(events), DocumentEndEvent):
                raise InputError(f"{_at(following, file)}: a document holds one value")
    return found


def _events(text: str, file: str) -> Iterator[Any]:
    """The events of the parser. Raises InputError where there are none."""
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = At(file, mark.line + 1, mark.column + 1) if mark else file
        about = f" ({error.context})" if error.context and error.problem else ""
        raise InputError(f"{where}: this is not YAML: {shown(error.problem or error.context)}{about}") from error
    except YAMLError as error:  # of characters, which have no line in it
        position = getattr(error, "position", None)
        line = text.count("\n", 0, position) + 1 if isinstance(position, int) else None
        at = f"{file}:{line}" if line else file
        raise InputError(f"{at}: a character that no YAML has: {shown(str(error).splitlines()[0])}") from error
    except (ValueError, RecursionError, AssertionError, AttributeError, IndexError, TypeError, KeyError) as error:
        raise InputError(f"{file}: this is not YAML: {shown(error)}") from error  # faults of the parser


def _at(event: Any, file: str) -> At:
    return At(file, event.start_mark.line + 1, event.start_mark.column + 1)


def _node(event: Any, events: Iterator[Any], file: str, depth: int) -> Node:
    at = _at(event, file)
    if isinstance(event, AliasEvent) or event.anchor is not None:
        mark = f"*{event.anchor}" if isinstance(event, AliasEvent) else f"&{event.anchor}"
        raise InputError(f"{at}: {shown(mark)}: anchors and aliases are refused; write the value where it is meant")
    if event.tag is not None:
        raise InputError(f"{at}: the tag {shown(event.tag)}: tags are refused; quote what is to be text")
    if depth > MAX_DEPTH:
        raise InputError(f"{at}: more than {MAX_DEPTH} lists and maps within each other")
    if isinstance(event, ScalarEvent):
        return Scalar(_text(event.value, at), at, plain=event.style is None)
    if isinstance(event, SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), SequenceEndEvent):
            items.append(_node(event, events, file, depth + 1))
        return Items(tuple(items), at)
    assert isinstance(event, MappingStartEvent)
    entries: dict[str, Entry] = {}
    while not isinstance(event := next(events), MappingEndEvent):
        key = _node(event, events, file, depth + 1)
        if not isinstance(key, Scalar):
            raise InputError(f"{key.at}: a key is a name, and no list or map")
        if key.plain and key.text == "<<":
            raise InputError(f"{key.at}: merge keys (<<) are refused; write the fields where they are meant")
        if key.text in entries:
            first = entries[key.text].key.at
            raise InputError(f"{key.at}: {shown(key.text)!r} stands there twice; first in line {first.line}")
        entries[key.text] = Entry(key, _node(next(events), events, file, depth + 1))
    return Table(entries, at)


def _text(text: str, at: At) -> str:
    """The text, with pairs of surrogates, as JSON escapes them, as the characters that they mean. Raises InputError for
    half of one, and for NUL, which no path and no name has."""
    try:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise InputError(f"{at}: half of a surrogate pair is no text") from error
    if "\0" in text:
        raise InputError(f"{at}: the character NUL")
    return text
