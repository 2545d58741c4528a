"""MiSS: rows of a block are added to the columns of the weight in turn. W'[o, i] = W[o, i] + w·D[i mod r, o].

D (r, out); of the variant `mini` D (r, m), whose columns come in turn too: D[i mod r, o mod m].

Source: J. Kang, Q. Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure"
(arXiv:2409.15371). Checked against PEFT 0.21.2 in the tests. The variant `bat` multiplies blocks of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import MismatchError, by, shown
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import product
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

BLOCK, VARIANT = "miss_block", "init_weights"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """D (r, out) for a weight (out, in), with r no larger than in; or (r, m), with m a divisor of out."""
    block = factors[BLOCK]
    if len(weight) != 2 or len(block) != 2 or not block[0]:
        return None
    columns = block[1] if block[1] and weight[0] % block[1] == 0 else weight[0]
    return {BLOCK: (min(block[0], weight[1]), columns)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
    """LoRA with Dᵀ and a matrix of ones and zeros, which has a one at (i mod r, i). Raises MismatchError where D has
    fewer columns than the weight has rows, and the variant is not `mini`."""
    block, (out, wide) = factors[BLOCK], weight
    rank, columns = block.shape
    if settings[VARIANT] != "mini" and columns != out:
        raise MismatchError(
            f"{block.path}: {shown(block.spec.name)} is {block.spec}, but the weight is {by(weight)}: it must have "
            f"{out} columns; is this adapter for another model?"
        )

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return [read(block, 0, rank)[:, np.arange(first, last) % columns].T]

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:  # noqa: ARG001
        return [(np.arange(wide) % rank == np.arange(first, last)[:, None]).astype(np.float64)]

    return [product((block,), (out, rank, wide), (left, 1), (right, 1), scale)]


def check(fields: Mapping[str, Any]) -> str | None:
    """Why the variant is not handled."""
    variant = fields.get(VARIANT)
    if variant == "bat":
        return f"{VARIANT} = bat is not supported yet: it multiplies blocks of the weight"
    if variant not in (None, True, False, "mini"):
        return f"{VARIANT} = {shown(variant)[:80]} is not known"
    return None


def fits(settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str | None:
    """Whether the block has the sizes that the config says."""
    rank, said = shapes[BLOCK][:1], settings["mini_r"] if settings[VARIANT] == "mini" else None
    if rank != (settings["r"],) or (said is not None and shapes[BLOCK][1:] != (said,)):
        own = f"r is {settings['r']}" + ("" if said is None else f" and mini_r is {shown(said)[:80]}")
        return f"{own}, and its factor {by(shapes[BLOCK])}"
    return None


MISS = Kind(
    name="miss",
    roles=frozenset({BLOCK}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    spellings={
        "peft": Spelling(
            tag="MISS",
            keys={f".{BLOCK}": BLOCK},
            alpha=None,
            scale=lambda _: 1.0,
            settings=frozenset({"r", "mini_r", VARIANT}),
            check=check,
            fits=fits,
            harmless=frozenset({"miss_dropout"}),
        )
    },
)
