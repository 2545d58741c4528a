"""Which tensors of a checkpoint lie in layers, and what they are called in others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.jsonfile import objects
from adaptertool.patterns import regex

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # keys of a config.json: how many layers
_LAYER = regex(r"(?:^|\.)([0-9]{1,9})(?=\.)")
# Before all layers, of what is in none; whatever else is behind them
_FIRST = regex(
    r"(?:^|[._])(?:wte|wpe|shared|relative_pe|(?:\w+_)?embed(?!_out)(?:ding|dings|_\w+|s)?|emb)(?:\.|_|$)|_embeddings?\b"
)


class InLayer(NamedTuple):
    """A tensor in a layer: its name is front + number + rest."""

    front: str
    number: int
    rest: str

    def at(self, number: int) -> str:
        """The name of the same tensor in another layer."""
        return f"{self.front}{number}{self.rest}"


def in_layer(name: str) -> InLayer | None:
    """Where a tensor lies: in the layer of the first number between dots of its name; None where there is none."""
    found = _LAYER.search(name)
    return None if found is None else InLayer(name[: found.start(1)], int(found[1]), name[found.end(1) :])


def is_first(name: str) -> bool:
    """Whether a tensor that is in no layer comes before them: an embedding."""
    return _FIRST.search(name) is not None


def counts(names: Iterable[str]) -> Mapping[str, int]:
    """How many layers each stack has, by what stands before the number."""
    found: dict[str, int] = {}
    for name in names:
        if (place := in_layer(name)) is not None:
            found[place.front] = max(found.get(place.front, 0), place.number + 1)
    return found


def stack_of(checkpoint: Checkpoint) -> tuple[str, int]:
    """The one stack of layers that slices are of, and how many there are. Raises UnsupportedError where there are
    several, and InputError where config.json says another number."""
    stacks = counts(checkpoint.tensors)
    if len(stacks) != 1:
        what = (
            f"{len(stacks)} stacks of layers ({', '.join(map(shown, sorted(stacks)[:4]))})" if stacks else "no layers"
        )
        raise UnsupportedError(f"{checkpoint.path} has {what}: slices are of models with just one")
    ((front, count),) = stacks.items()
    said = {part[key] for part in objects(checkpoint.config or {}) for key in DEPTHS if key in part}
    if said and count not in said:
        raise InputError(
            f"{checkpoint.path} has tensors of {count} layers, and its config.json says {', '.join(map(shown, said))}"
        )
    return front, count
