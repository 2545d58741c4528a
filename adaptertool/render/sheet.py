"""What a page or a card says, as data: pages of every report are one template over this (page.html, card.html)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import PurePath

from adaptertool.errors import shown
from adaptertool.records import dataclass

ROWS = 2000  # of a table on a page: a browser sorts and filters so many at once, and JSON has all
RIGHT, WRONG = "right", "wrong"  # tones

Figure = tuple[str, str]  # a picture as SVG, that needs no escaping, and its caption


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    tone: str = ""  # RIGHT, WRONG, or none
    soft: str = ""  # a remark below it
    lines: tuple[str, ...] = ()  # what there is to say beyond, folded
    fold: str = ""  # the text that they are folded behind


Row = Sequence[Cell | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetTable:
    title: str
    about: str = ""
    head: Sequence[str]
    rows: Sequence[Row]
    foot: Sequence[str] = ()
    left: int = 1  # columns of words, which stand to the left; the others are numbers

    @property
    def told(self) -> Sequence[Row]:
        """The rows that there is room for."""
        return self.rows[:ROWS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A report in the order in which it is read. Texts are escaped by the template."""

    command: str  # the first word in the tab of a browser
    heading: str
    badge: tuple[str, str] | None = None  # a word, and its tone
    verdict: str = ""  # the sentence beside it
    about: Sequence[tuple[str, str]] = ()  # what it is about: inputs, above all
    facts: Sequence[tuple[str, str]] = ()  # the figures that count
    alerts: Sequence[str] = ()  # what to do, or to look at
    lines: Sequence[tuple[str, str]] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[SheetTable] = ()
    notes: Sequence[str] = ()


def tail(path: str) -> str:
    """The last part of a path, to name it where there is little room."""
    return shown(PurePath(path).name or path)


def mix(sources: Sequence[str], weights: Sequence[float] = ()) -> str:
    """Sources as they are added up, with the weights that are not 1."""
    pairs = zip_longest(sources, weights, fillvalue=1)
    return " + ".join(f"{one} × {weight:g}" if weight != 1 else f"{one}" for one, weight in pairs)


def without_empty(head: Sequence[str], rows: Sequence[Row]) -> tuple[list[str], list[Row]]:
    """A table less the columns in which no row has anything; the first stays."""
    empty = {"", "-", "–"}
    kept = [
        place
        for place in range(len(head))
        if not (place and rows and all((row[place] if isinstance(row[place], str) else "x") in empty for row in rows))
    ]
    return [head[place] for place in kept], [[row[place] for place in kept] for row in rows]
