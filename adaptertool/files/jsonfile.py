"""JSON as the files of this field hold it, read strictly: no duplicate keys, no NaN, bounded size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from adaptertool.errors import InputError, shown
from adaptertool.files.magic import told_apart
from adaptertool.files.reader import open_input, read_exact
from adaptertool.patterns import regex

MAX_JSON_BYTES = 100_000_000  # an index of 671 B parameters has 12.4 MB
# Commas and opening brackets, which no value is without: three bytes of text, `[],`, take 64 of memory, and `{"":0},`
# 240. A header has 8 for each tensor.
MAX_MARKS = 3_000_000

# Half of a pair of surrogates without the other, where no backslash is escaped
_HALF = regex(
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F]..(?<!\\u[dD][89abAB]..\\u[dD]...))"  # begins fast to find
)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{shown(twice[:500])}' stands there twice")
    return result


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)  # as the reference reader has it


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _parsed(text: bytes) -> Any:
    return json.loads(
        text.decode("utf-8"),
        object_pairs_hook=_pairs,
        parse_constant=_constant,
        parse_int=_integer if b"-0" in text else None,  # slower, and hardly ever needed
    )


def _refuse_halves(text: bytes) -> None:
    """Half of a pair of surrogates is no text: it could not be written again."""
    if rb"\u" in text and (found := _HALF.search(text.replace(rb"\\", b".."))):
        raise ValueError(f"{found[0].decode()} is half of a surrogate pair: byte {found.start()}")


def require_few_marks(text: bytes, what: str) -> None:
    """Raises InputError for JSON that would take too much memory. what: what it is called"""
    if len(text) > MAX_MARKS and sum(map(text.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise InputError(f"{what} has more than {MAX_MARKS:,} commas and brackets; so much is refused unread")


def parse_json(text: bytes, what: str, *, halves: bool = False) -> dict[str, Any]:
    """Parse one JSON object. Raises InputError for anything else, in which `what` names it.

    halves: half of a pair of surrogates may stand there; so Python has names of files that are not UTF-8
    """
    require_few_marks(text, what)
    try:
        value = _parsed(text)
        if not halves:
            _refuse_halves(text)
    except (ValueError, RecursionError) as error:
        if remark := told_apart(text):
            raise InputError(f"{what} {remark}") from error
        reason = str(error).partition("; use sys.")[0]  # advice for programmers, on numbers of over 4300 digits
        raise InputError(f"{what} is not valid JSON: {shown(reason)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{what} must hold a JSON object, but holds a {type(value).__name__}")
    return value


def load_json(path: Path, *, halves: bool = False) -> dict[str, Any]:
    """Read a file that must hold one JSON object. halves: as in `parse_json`. Raises InputError where it does not, or
    is too large."""
    with open_input(path) as file:
        if file.size > MAX_JSON_BYTES:
            raise InputError(f"{path} has {file.size:,} bytes; a JSON file over {MAX_JSON_BYTES:,} is refused")
        return parse_json(read_exact(file, 0, file.size), str(path), halves=halves)


def objects(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The object and, below it, the objects that its fields hold: of a config those of the parts of a model."""
    found: list[Any] = [content]
    for one in found:  # grows while it is walked
        found += [value for value in one.values() if isinstance(value, dict)]
    return found
