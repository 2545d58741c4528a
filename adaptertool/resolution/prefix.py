"""Prefixes by which all names of one model differ from another's: of the model inside one with a head, of a tower.

A prefix that names a part of a model is changed only where the rest says which part is meant: the other part may have
the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from adaptertool.architectures.flat import DOTTED
from adaptertool.errors import shown
from adaptertool.patterns import regex
from adaptertool.records import dataclass

_OF_HEADS = frozenset({"model", "transformer", "backbone", "bert", "roberta", "deberta"})

LANGUAGE, VISION, AUDIO = "language", "vision", "audio"
_TOWERS = {
    LANGUAGE: regex(r"(language|text|llm)(_model|_tower|_backbone)?|llm"),
    VISION: regex(r"(vision|visual|image)(_model|_tower|_encoder|_backbone)?"),
    AUDIO: regex(r"(audio|speech)(_model|_tower|_encoder)?"),
}


@dataclass(frozen=True, slots=True)
class Prefix:
    """A change of prefix by which all names fit. Names to which it does not apply stay as they are."""

    first: str
    stripped: bool
    after: str = ""  # the part that it stands behind; "" at the front

    def __call__(self, name: str) -> str:
        before, without = (f"{self.after}." if self.after else ""), name
        if before and not name.startswith(before):
            return name
        without = name[len(before) :]
        if not self.stripped:
            return f"{before}{self.first}.{without}"
        return before + without.removeprefix(f"{self.first}.")

    @property
    def whole(self) -> str:
        """The prefix as names have it that have it."""
        return f"{self.after}.{self.first}." if self.after else f"{self.first}."

    def __str__(self) -> str:
        return f"the prefix {shown(self.whole[:-1])} {'stripped' if self.stripped else 'added'}"


def tower_of(part: str) -> str | None:
    """Which tower of a model the part of a name says, if it says one."""
    return next((tower for tower, pattern in _TOWERS.items() if pattern.fullmatch(part)), None)


def is_of_head(part: str, family: str) -> bool:
    """Whether models with a head keep the model without one under this name: "model", or after the family."""
    family = family.replace("-", "").replace("_", "")
    return part in _OF_HEADS or (len(part) > 2 and family.startswith(part.replace("_", "")))


def is_outside(name: str) -> bool:
    """Whether a name is that of a tensor of a module at the top, as heads are: prefixes need not be theirs."""
    return name.count(".") < 2


def changes(names: Collection[str], known: Collection[str], family: str) -> Iterator[Prefix]:
    """The changes of prefix that may turn `names` into some of `known`: each is to be tried."""
    for first in sorted({name.partition(".")[0] for name in names}):
        if is_of_head(first, family):
            yield Prefix(first, stripped=True)
    for first in sorted({name.partition(".")[0] for name in known}):
        if is_of_head(first, family):
            yield Prefix(first, stripped=False)
    for start in DOTTED:  # of a part of a pipeline, in adapters for several; a base may be that part
        if not is_of_head(start[:-1], family) and any(name.startswith(start) for name in names):
            yield Prefix(start[:-1], stripped=True)
    yield from _of_towers(names, known, family)


def _of_towers(names: Collection[str], known: Collection[str], family: str) -> Iterator[Prefix]:
    """A model that is the tower of another. Names below "model" are those of a language model by itself: the other
    towers are never found for them. Names that say their tower find that."""
    starts = {_start(name) for name in names if not is_outside(name)}
    theirs = {_start(name) for name in known if not is_outside(name)}
    towers = {LANGUAGE if is_of_head(first, family) else tower_of(first) for first, _ in starts}
    said = {tower for first, second in starts if (tower := tower_of(second)) and is_of_head(first, family)}
    if len(towers) == 1 and not said and (tower := towers.pop()):
        for first in sorted({one for one, _ in theirs if tower_of(one) == tower}):
            yield Prefix(first, stripped=False)
        for first, second in sorted(theirs):
            if tower_of(second) == tower and all(own == first for own, _ in starts):
                yield Prefix(second, stripped=False, after=first)
    for first, second in sorted(starts):
        if tower_of(first) == LANGUAGE and is_of_head(second, family):
            yield Prefix(first, stripped=True)
        elif tower_of(second) == LANGUAGE and is_of_head(first, family):
            yield Prefix(second, stripped=True, after=first)


def _start(name: str) -> tuple[str, str]:
    """The first two parts of a name."""
    first, second = name.split(".", 2)[:2]
    return first, second
