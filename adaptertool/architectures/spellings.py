"""Image and video models in two spellings: of their original repositories and of diffusers. The table is data:
diffusion.json, made by tools/derive_diffusion_names.py from diffusers' own converters.

A line has the name in diffusers, the original's where it is another, and which rows of that it is: "0 1 3" the first of
three equal parts, "swapped" all of them with the second half before the first. * is the number of a layer, $ that of
the last where it is not as the others; a name that ends with a dot is that of a module, for all of its parameters.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adaptertool.architectures.conversion import Part
from adaptertool.architectures.relation import Relation
from adaptertool.patterns import regex

_LAYER = regex(r"(?<=blocks\.)\d+|(?<=layers\.)\d+|(?<=refiner\.)\d+")
_LEAST = 0.8  # of a model's tensors that a table must know to be its table, where no class is named


class _Line(NamedTuple):
    ours: str
    original: str
    part: Part | None
    last: bool  # of the last layer only


# Classes whose checkpoints diffusers converts by the function of another, -> that one
_AS = dict.fromkeys(
    ("SkyReelsV2Transformer3DModel", "ChronoEditTransformer3DModel", "WanAnimateTransformer3DModel"),
    "WanTransformer3DModel",
)

Named = Mapping[str, list[tuple[str, list[str], str]]]  # by pattern: name, numbers of layers, what follows the pattern


def table_of(names: Collection[str], class_name: str) -> Sequence[_Line]:
    """The table of a model, by its class in diffusers or else by its tensors; empty where it is not known."""
    if class_name:
        return _tables().get(_AS.get(class_name, class_name), ())
    if not any(map(names.__contains__, _of_first_layers())):
        return ()
    held = Counter(map(_patterns, names))
    known = {
        class_name: sum(count for some, count in held.items() if not patterns.isdisjoint(some))
        for class_name, table in _tables().items()
        if (patterns := {pattern for line in table for pattern in (line.ours, line.original)})
    }
    best = max(known, key=lambda one: known[one], default="")
    return _tables()[best] if best and known[best] >= _LEAST * len(names) else ()


def relations(names: Collection[str], table: Sequence[_Line]) -> Iterator[Relation]:
    """Each tensor in both spellings, as far as the table knows it."""
    named = _by_pattern(names)
    last = max((int(numbers[0]) for some in named.values() for _, numbers, _ in some if numbers), default=-1)
    odd = {(line.ours, line.original) for line in table if line.last}
    for line in table:
        for name, numbers, rest in named.get(line.original, named.get(line.ours, ())):
            is_last = bool(numbers) and int(numbers[0]) == last
            if line.last != is_last and (line.last or (line.ours, line.original) in odd):
                continue
            ours, original = (_filled(pattern, numbers) + rest for pattern in (line.ours, line.original))
            if name in (ours, original):
                yield Relation(ours, original, line.part)


def _filled(pattern: str, numbers: Sequence[str]) -> str:
    """The name that a pattern stands for, with these numbers of layers."""
    first, *others = pattern.split("*")
    return first + "".join(number + other for number, other in zip(numbers, others, strict=False))


def _patterns(name: str) -> tuple[str, str]:
    """A name, and its module, with * for the numbers of layers."""
    pattern = _LAYER.sub("*", name)
    return pattern, pattern[: pattern.rfind(".") + 1]


def _by_pattern(names: Collection[str]) -> Named:
    found: dict[str, list[tuple[str, list[str], str]]] = {}
    for name in names:
        numbers, whole = _LAYER.findall(name), _patterns(name)
        for pattern in dict.fromkeys(whole):
            found.setdefault(pattern, []).append((name, numbers, whole[0][len(pattern) :]))
    return found


@functools.cache
def _of_first_layers() -> Sequence[str]:
    """Names that all tables have together, those of first layers: one look tells most models to be none of these."""
    lines = [line for table in _tables().values() for line in table]
    patterns = dict.fromkeys(name.replace("*", "0") for line in lines for name in (line.ours, line.original))
    return [name + "weight" if name.endswith(".") else name for name in patterns]


@functools.cache
def _tables() -> Mapping[str, Sequence[_Line]]:
    content = json.loads(Path(__file__).with_name("diffusion.json").read_text())
    return {name: [_line(text) for text in lines] for name, lines in content["models"].items()}


def _line(text: str) -> _Line:
    words = text.split(" ")
    names = [word for word in words if not word.isdecimal() and word != "swapped"]
    rows = [int(word) for word in words if word.isdecimal()]
    part = Part(rows[0], rows[2], more=rows[1] - rows[0] - 1) if rows else None
    if "swapped" in words:
        part = Part(swapped=True)
    ours, original = (name.replace("$", "*") for name in (names[0], names[-1]))
    return _Line(ours, original, part, last="$" in text)
