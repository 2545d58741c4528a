"""C3A: a change of circulant blocks, W' = W + w·D/in, with D[i·b + t, j·b + u] = κ[i, j, (u − t) mod b].

1/in is the float64 nearest to it. Source: A. Chen et al., "Parameter-Efficient Fine-Tuning via Circular Convolution"
(arXiv:2407.19342). Checked against PEFT 0.21.2 in the tests, which has them on linear layers, and makes D by Fourier
transforms in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.difference import DELTA, DIFFERENCE
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import made
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

KERNEL = "c3a_kernel"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """κ (out/b, in/b, b) for a weight (out, in)."""
    if len(weight) != 2 or len(factors[KERNEL]) != 3 or not factors[KERNEL][2]:
        return None
    block = math.gcd(*weight, factors[KERNEL][2])  # another than κ has where that does not divide both
    return {KERNEL: (weight[0] // block, weight[1] // block, block)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """D as a difference."""
    kernel = factors[KERNEL]
    _, across, block = kernel.shape

    def rows(read: ReadRows, first: int, last: int) -> Array:
        down, within = np.divmod(np.arange(first, last), block)
        begin, end = first // block, -(-last // block)
        own = read(kernel, begin, end).reshape(end - begin, across, block)
        turns = np.lib.stride_tricks.sliding_window_view(np.concatenate([own, own], axis=2), block, axis=2)
        return turns[down - begin, :, (block - within) % block].reshape(last - first, across * block)

    return [Part(DIFFERENCE.name, {DELTA: made((kernel,), weight, rows, plain=True)}, 1 / weight[1])]


C3A = Kind(
    name="c3a",
    roles=frozenset({KERNEL}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    spellings={
        "peft": Spelling(
            tag="C3A",
            keys={f".{KERNEL}": KERNEL},
            rank=None,
            alpha=None,
            harmless=frozenset({"block_size", "block_size_pattern", "init_weights"}),
        )
    },
)
