"""Which layers get adapters when mlx-lm loads a config: its `num_layers` and `keys`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.patterns import regex

_BLOCK = regex(r"(?:[^.]+\.)*?(\d+)\.(.+)")  # the number of a block, and a path below it
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # of the config of a model
_ALL = -1


def targets_of(names: Sequence[str], config: Mapping[str, Any] | None) -> tuple[int, list[str]]:
    """(num_layers, keys) that give adapters to just these layers.

    Where the last blocks of the model have the same ones, these as paths below a block; the others in full. Each block
    of the last num_layers gets what keys name below it, and every layer that they name in full gets one.
    """
    blocks: dict[int, set[str]] = {}
    others = []
    for name in names:
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(int(match[1]), set()).add(match[2])
        else:
            others.append(name)
    depth = next((found for key in _DEPTHS if type(found := (config or {}).get(key)) is int), None)
    alike = len({frozenset(below) for below in blocks.values()}) == 1
    if depth is None or not alike or sorted(blocks) != list(range(depth - len(blocks), depth)):
        return _ALL, sorted(names)
    return len(blocks), sorted({*blocks[depth - 1], *others})
