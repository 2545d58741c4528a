"""A number that differs between tensors: a default, and rules for those whose names fit a pattern.

A pattern is parts of a name between dots, one after the other and anywhere in it: `layers.0-15.mlp` fits
model.layers.3.mlp.up_proj.weight. `0-15` is any of these numbers, `*` any text without a dot. Between slashes it is a
regex, which is found in the name: `/layers\\.\\d+\\.mlp/`.

Several numbers are a gradient over layers. With the k numbers a₀ ... a₍ₖ₋₁₎, at the place t from 0 to 1:

    x = t·(k − 1),  i = ⌊x⌋:   aᵢ + (x − i)·(aᵢ₊₁ − aᵢ)

computed exactly. Of n layers the one of number l is at t = l/(n − 1), and the only one at t = 1, as in mergekit.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from adaptertool.patterns import regex

ANY = "*"  # the pattern that fits every name

_RANGE = regex(r"([0-9]{1,9})-([0-9]{1,9})")
_LAYER = regex(r"(?:^|\.)([0-9]{1,9})(?=\.|$)")
_MOST = 10_000  # numbers of a range


class Rule(NamedTuple):
    """The number of tensors whose names fit; several numbers are a gradient over layers."""

    pattern: str
    numbers: tuple[Decimal, ...]

    def fits(self, name: str, place: Fraction | None) -> bool:
        """A gradient says nothing of a tensor that is in no layer."""
        return (len(self.numbers) == 1 or place is not None) and fits(self.pattern, name)


class Schedule(NamedTuple):
    """A number for each tensor. Of several rules that fit the last one counts."""

    default: Decimal
    rules: tuple[Rule, ...] = ()

    def at(self, name: str, place: Fraction | None) -> Fraction:
        """The number of a tensor. place: t of its layer; None where it is in none"""
        for rule in reversed(self.rules):
            if rule.fits(name, place):
                return at_place(rule.numbers, place or Fraction(0))
        return Fraction(self.default)


WHOLE = Schedule(Decimal(1))


def at_place(numbers: Sequence[Decimal], place: Fraction) -> Fraction:
    """The number of a gradient at a place from 0 to 1."""
    first, share = divmod(place * (len(numbers) - 1), 1)
    before = Fraction(numbers[first])
    return before if not share else before + share * (Fraction(numbers[first + 1]) - before)


def places_of(names: Iterable[str]) -> Mapping[str, Fraction]:
    """Where in the model the tensors lie that are in a layer: it is the first number between dots in the name, of as
    many as there are up to the largest behind the same beginning."""
    found = {name: match for name in names if (match := _LAYER.search(name))}
    last: dict[str, int] = {}
    for name, match in found.items():
        beginning = name[: match.start(1)]
        last[beginning] = max(last.get(beginning, 0), int(match[1]))
    places = {}
    for name, match in found.items():
        most = last[name[: match.start(1)]]
        places[name] = Fraction(int(match[1]), most) if most else Fraction(1)
    return places


def fits(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern. Raises ValueError as `compiled` does."""
    return compiled(pattern).search(name) is not None


@functools.lru_cache(maxsize=1024)
def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regex that is found in names. Raises ValueError, which says why, where it is none."""
    if pattern == ANY:
        return re.compile("")
    if len(pattern) > 1 and pattern[0] == pattern[-1] == "/":
        try:
            return re.compile(pattern[1:-1])
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"no valid regex between its slashes: {error}") from error
    parts = r"\.".join(map(_part, pattern.split(".")))
    return re.compile(rf"(?:^|\.){parts}(?:\.|$)")


def _part(text: str) -> str:
    if not text:
        raise ValueError("two dots with nothing between them, or one at an end, or nothing at all")
    if (span := _RANGE.fullmatch(text)) is None:
        return "[^.]*".join(map(re.escape, text.split("*")))
    first, last = int(span[1]), int(span[2])
    if not first <= last < first + _MOST:
        raise ValueError(f"{text} is no range of up to {_MOST:,} numbers, from the smaller to the larger")
    return f"(?:{'|'.join(map(str, range(first, last + 1)))})"
