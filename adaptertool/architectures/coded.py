"""How much of a checkpoint is stored as codes, and how."""

from __future__ import annotations

import math
from typing import NamedTuple

from adaptertool.architectures.quantised import read_codes
from adaptertool.errors import by
from adaptertool.files.checkpoint import Checkpoint


class Coded(NamedTuple):
    """The weights of a checkpoint that are stored in one format, together."""

    weights: int
    numbers: int
    stored: int  # bytes, with scales and the like
    blocks: tuple[str, ...]  # the sizes that have a scale, as far as the format says them


def formats_of(base: Checkpoint) -> tuple[dict[str, Coded], int]:
    """What is stored as codes, by the names of the formats, and how many numbers are not. Raises as `decoded` does."""
    weights, kept, _ = read_codes(base)
    found = {}
    for name in sorted({weight.format for weight in weights.values()}):
        own = [weight for weight in weights.values() if weight.format == name]
        grids = {weight.lattice.grid.block for weight in own if weight.lattice}
        found[name] = Coded(
            len(own),
            sum(math.prod(weight.shape) for weight in own),
            sum(ref.spec.nbytes for weight in own for ref in weight.parts),
            tuple(map(by, sorted(grids))),
        )
    return found, sum(ref.spec.numel for ref in kept.values())
