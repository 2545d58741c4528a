"""Patterns that fit no tensor: what is said of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType

from adaptertool.errors import UsageError, shown
from adaptertool.patterns import regex
from adaptertool.spec.schedule import fits

Tied = Mapping[str, str]  # an end that is not stored -> the tensor that it is tied to
NONE_TIED: Tied = MappingProxyType({})

_ODD = regex(r"[\\()\[\]^$|+?{}]")  # what a pattern without slashes has no use for


def refuse(pattern: str, what: str, names: Collection[str], *, graded: bool = False, tied: Tied = NONE_TIED) -> None:
    """Raises UsageError: no tensor fits."""
    if end := next((end for end in tied if fits(pattern, end)), None):
        raise UsageError(
            f"{what} {pattern!r} fits {shown(end)}, which is tied to {shown(tied[end])} and not stored: give it for "
            f"{shown(tied[end])}, which is both of them"
        )
    if graded and (outside := [name for name in names if fits(pattern, name)]):
        raise UsageError(
            f"{what} {pattern!r}: a gradient goes over layers, and what fits is in none of them, such as "
            f"{shown(outside[0])}: give one number"
        )
    near = list(_near(pattern, names))
    hint = f"nearest: {', '.join(map(shown, near))}" if near else f"names are such as {', '.join(_samples(names))}"
    slashes = "; a regex stands between slashes" if pattern[:1] != "/" and _ODD.search(pattern) else ""
    raise UsageError(f"{what} {pattern!r} fits no tensor of the base{slashes}; {hint}")


def _samples(names: Iterable[str]) -> list[str]:
    pool = list(names)
    return [shown(pool[place]) for place in sorted({0, len(pool) // 2, len(pool) - 1}) if pool]


def _near(pattern: str, names: Iterable[str]) -> Iterator[str]:
    """Up to three names with parts in them that are most like the pattern, whatever its numbers."""
    count, found = len(pattern.split(".")), dict[str, str]()
    for name in names:
        parts = name.split(".")
        for first in range(len(parts) - count + 1):
            found.setdefault(_numberless(".".join(parts[first : first + count])), name)
    close = difflib.get_close_matches(_numberless(pattern), list(found)[:5000], n=3, cutoff=0.6)
    yield from dict.fromkeys(found[one] for one in close)


def _numberless(text: str) -> str:
    return re.sub(r"[0-9]+(-[0-9]+)?", "0", text)
