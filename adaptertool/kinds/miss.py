"""MiSS: rows of a block are added to the columns of the weight in turn. W'[o, i] = W[o, i] + w·D[i mod r, o].

D (r, out); of the variant `mini` D (r, m), whose columns come in turn too: D[i mod r, o mod m]. Of the variant `bat` D
(out/r, r, r): each block X (r, r) of the k-th r rows of the weight becomes X + w·(X·D[k] + D[k]).

Bone is what PEFT before 0.19 called the same, with bone_block in the place of miss_block.

Source: J. Kang, Q. Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure"
(arXiv:2409.15371). Checked against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import MismatchError, by, shown
from adaptertool.kinds.blocks import rotation
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import product, whole
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

BLOCK, VARIANT = "miss_block", "init_weights"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """D (r, out) for a weight (out, in), with r no larger than in; or (r, m), with m a divisor of out; or (out/r, r, r)
    with r a divisor of both."""
    block = factors[BLOCK]
    if len(weight) == 2 and len(block) == 3:
        rank = math.gcd(*weight, block[2])  # another than D has where that does not divide both
        return {BLOCK: (weight[0] // rank, rank, rank)} if rank else None
    if len(weight) != 2 or len(block) != 2 or not block[0]:
        return None
    columns = block[1] if block[1] and weight[0] % block[1] == 0 else weight[0]
    return {BLOCK: (min(block[0], weight[1]), columns)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
    """LoRA with Dᵀ and a matrix of ones and zeros, which has a one at (i mod r, i). Raises MismatchError where D has
    fewer columns than the weight has rows, and the variant is not `mini`.

    Of `bat` for each r rows a rotation with I + D[k], exact as a sum of two numbers; then LoRA with all of D.
    """
    block, (out, wide) = factors[BLOCK], weight
    if len(block.shape) == 3:
        return [*(_rotation(block, k, wide) for k in range(block.shape[0])), _added(block, weight)]
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


def _rotation(block: Ref, k: int, wide: int) -> Part:
    rank = block.shape[2]

    def blocks(read: ReadRows, first: int, last: int) -> DoubleDouble:
        own = read(block, k, k + 1).reshape(1, rank, rank)
        some = DoubleDouble.of(np.eye(rank)[None]) + DoubleDouble.of(own)
        return DoubleDouble(np.repeat(some.parts, last - first, axis=1))

    part = rotation((block,), (1, wide, rank), blocks, turned=False)
    return part._replace(rows=range(k * rank, (k + 1) * rank))


def _added(block: Ref, weight: Shape) -> Part:
    (out, wide), rank = weight, block.shape[2]

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return [whole(read, block).reshape(out, rank)[first:last]]

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:  # noqa: ARG001
        return [(np.arange(wide) % rank == np.arange(first, last)[:, None]).astype(np.float64)]

    return product((block,), (out, rank, wide), (left, 1), (right, 1), 1.0)


def check(fields: Mapping[str, Any]) -> str | None:
    """Why the variant is not handled."""
    variant = fields.get(VARIANT)
    if variant not in (None, True, False, "mini", "bat"):
        return f"{VARIANT} = {shown(variant)[:80]} is not known"
    return None


def fits(settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str | None:
    """Whether the block has the sizes that the config says."""
    if (settings[VARIANT] == "bat") != (len(shapes[BLOCK]) == 3):
        return f"{VARIANT} is {settings[VARIANT]}, and its factor {by(shapes[BLOCK])}"
    rank, said = shapes[BLOCK][-1:], None
    if settings[VARIANT] != "bat":
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
BONE = dataclasses.replace(
    MISS,
    name="bone",
    spellings={
        "peft": Spelling(
            tag="BONE",
            keys={".bone_block": BLOCK},
            alpha=None,
            scale=lambda _: 1.0,
            settings=frozenset({"r", VARIANT}),
            check=check,
            fits=fits,
        )
    },
)
