"""Patterns in a config: regexes from a file that anyone may have written. Python's have no limit of time."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from adaptertool.errors import InputError, UnsupportedError, shown

MAX_REPEATS = 4  # signs that repeat something, in one pattern
MAX_PATTERN = 10_000  # characters
MAX_STEPS = 100_000_000  # for one name: some seconds

_T = TypeVar("_T")


def check(where: str, pattern: str) -> None:
    """Raises UnsupportedError or InputError, which begin with `where`."""
    if len(pattern) > MAX_PATTERN:
        raise UnsupportedError(f"{where}, a pattern of {len(pattern):,} characters; at most {MAX_PATTERN:,} are read")
    # With the flag x white space may stand between a group and the sign that repeats it.
    if re.search(r"\)[*+{]|\(\?\w*x", pattern) or len(re.findall(r"[*+{]", pattern)) > MAX_REPEATS:
        raise UnsupportedError(
            f"{where}, which may take for ever to match: a repeated group, or more than {MAX_REPEATS} repeats"
        )
    try:
        re.compile(pattern)
        re.compile(_anchored(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{where}, no valid pattern: {shown(error)}") from error


def by_pattern(where: str, patterns: Mapping[str, _T], module: str, default: _T) -> _T:
    """PEFT's rule: the first pattern wins that matches the whole path, or the end of it after a dot. Raises
    UnsupportedError for one that may take for ever."""
    for pattern, value in patterns.items():
        _require_short(where, pattern, module)
        if re.match(_anchored(pattern), module):
            return value
    return patterns.get(module, default)  # as PEFT: then the name itself


def is_named(where: str, names: str | Sequence[str], module: str) -> bool:
    """PEFT's rule for fields of names: a text is a pattern for the whole path, and a list holds ends of it. Raises
    UnsupportedError for a pattern that may take for ever."""
    if isinstance(names, str):
        _require_short(where, names, module)
        return re.fullmatch(names, module) is not None
    return any(module.endswith(name) for name in names)


def _require_short(where: str, pattern: str, module: str) -> None:
    if _steps(pattern, len(module)) > MAX_STEPS:
        raise UnsupportedError(
            f"{where} holds '{shown(pattern)[:80]}', which may take for ever to match {shown(module)[:80]} "
            f"({len(module):,} characters)"
        )


def _anchored(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


@functools.lru_cache(maxsize=4096)
def _choices(pattern: str) -> tuple[int, int]:
    """How many repeats a pattern has, and in how many ways its options and alternatives may be taken: at most."""
    options = len(re.findall(r"(?<![(*+}?])\?", pattern))
    alternatives = math.prod(part.count("|") + 1 for part in re.split(r"[()]", pattern))
    return len(re.findall(r"[*+{]", pattern)), min(alternatives, MAX_STEPS) << min(options, 64)


def _steps(pattern: str, length: int) -> int:
    """How many steps it may take, roughly and at most, to find that `pattern` does not match a name so long."""
    repeats, ways = _choices(pattern)
    return math.comb(length + repeats + 1, repeats + 1) * ways  # one more, as _anchored has it
