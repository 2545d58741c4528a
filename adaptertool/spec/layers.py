"""An adapter as the layers that share one rank and one alpha."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from adaptertool.records import dataclass
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref


def key_of(factors: Mapping[str, Ref]) -> str:
    """The name of one of a change's factors, the same for all who ask."""
    return min(ref.spec.name for ref in factors.values())


class Pair(NamedTuple):
    """lora_A (E·r, in, ...), expert after expert, and lora_B (out, E·r, ...), in which the expert counts fastest, but
    in a grouped layer;  their names are the keys of the file. Without experts E is 1."""

    a: Ref
    b: Ref

    @property
    def inputs(self) -> int:
        return math.prod(self.a.spec.shape[1:])

    @property
    def outputs(self) -> int:
        return self.b.spec.shape[0]


class Layer(NamedTuple):
    """The low-rank change of one layer, or of one parameter: scale·B·A for each pair."""

    path: str  # which rank_pattern and alpha_pattern are matched against
    rank: int
    scale: float  # as PEFT computes it; that it applies out_proj of a MultiheadAttention twice is left to it
    pairs: tuple[Pair, ...]
    bias: Ref | None  # lora_B.bias
    magnitude: Ref | None  # DoRA
    is_parameter: bool  # of target_parameters
    grouped: bool = False  # of lora_B of experts: as of a Module
    # What it changes, where that is made of no such pair. `pairs` then has the names, shapes and dtypes that factors of
    # its leading part get, and nothing is stored where they say. Of shapes that only the base tells, they are empty.
    unpaired: Module | None = None

    @property
    def needs_base(self) -> bool:
        """Whether factors alone do not tell what it changes."""
        return self.magnitude is not None or self.unpaired is not None

    @property
    def is_open(self) -> bool:
        """Whether only the base tells the size of what it changes."""
        return self.unpaired is not None and not self.rank

    def of_size(self, out: int, wide: int, rank: int = 0) -> Layer:
        """The same with the size (out, in) of what it changes; without a rank, it may be of as large a one."""
        rank, ((a, b),) = rank or min(out, wide), self.pairs
        return self._replace(rank=rank, pairs=(Pair(a.of_shape(rank, wide), b.of_shape(out, rank)),))

    @property
    def as_stored(self) -> bool:
        """Whether its factors are written as they are stored, where nothing changes."""
        return not self.grouped and self.unpaired is None and not any(ref.made for ref in self.refs)

    @property
    def key(self) -> str:
        """The name of one of its factors, or of what is made of no pair, by which its edits are found."""
        if self.unpaired is not None:
            return self.unpaired.name
        return self.pairs[0].a.spec.name

    @property
    def experts(self) -> int:
        return self.pairs[0].a.spec.shape[0] // self.rank

    @property
    def refs(self) -> Iterable[Ref]:
        for pair in self.pairs:
            yield from pair
        yield from (ref for ref in (self.bias, self.magnitude) if ref is not None)


@dataclass(frozen=True, slots=True)
class Layered:
    """An adapter with what it takes to write it again."""

    adapter: Adapter
    layers: Mapping[str, Layer]  # by path, in the order of the file
    saved: tuple[Module, ...]  # what is stored itself, not as factors: saved modules, biases, token rows

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of its config."""
        return self.adapter.fields
