"""GraLoRA: the weight in k·k blocks, each with a product of its own, and maybe LoRA beside it (hybrid_r).

A (k, in/k, r) and B (k, r, out/k); with t = r/k, and n and j the numbers of a block of inputs and of outputs:
block (j, n) of W' = block (j, n) of W + w·s·(B[j, n·t..n·t+t])ᵀ·(A[n, :, j·t..j·t+t])ᵀ, with s = alpha/(r + hybrid_r).

Source: Y. Jung et al., "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning" (arXiv:2505.20355).
Checked against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import product, whole
from adaptertool.kinds.misreadings import ZEROS, ignored
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

A, B, HYBRID_A, HYBRID_B = "gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (k, in/k, r) and B (k, r, out/k), with k a divisor of r; both of LoRA (h, in) and (out, h), or none."""
    a = factors[A]
    if len(weight) != 2 or len(a) != 3 or 0 in a or a[2] % a[0] or weight[0] % a[0] or weight[1] % a[0]:
        return None
    blocks, _, rank = a
    expected: dict[str, Shape] = {A: (blocks, weight[1] // blocks, rank), B: (blocks, rank, weight[0] // blocks)}
    if HYBRID_A in factors or HYBRID_B in factors:
        some = factors.get(HYBRID_A, ())
        if HYBRID_B not in factors or not some:
            return None
        expected |= {HYBRID_A: (some[0], weight[1]), HYBRID_B: (weight[0], some[0])}
    return expected


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """LoRA of rank k·r, and the rank of LoRA beside it: row (n, j, t) of A' has A where the input is of block n, column
    (n, j, t) of B' has B where the output is of block j, and zeros elsewhere."""
    a, b = factors[A], factors[B]
    hybrid = [factors[role] for role in (HYBRID_A, HYBRID_B) if role in factors]
    blocks, wide, rank = a.shape
    inner, tall = rank // blocks, b.shape[2]

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:  # noqa: ARG001
        made = np.zeros((blocks, rank, blocks, wide))
        own = whole(read, a)
        for block in range(blocks):
            made[block, :, block] = own[block].T
        more = [whole(read, ref) for ref in hybrid[:1]]
        return [np.concatenate([made.reshape(blocks * rank, blocks * wide), *more])]

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        own = whole(read, b).reshape(blocks, blocks, inner, tall)  # j, n, t, row
        made = np.zeros((last - first, blocks, blocks, inner))  # row, n, j, t
        block, place = np.divmod(np.arange(first, last), tall)
        made[np.arange(last - first), :, block] = own[block, :, :, place]
        return [
            np.concatenate([made.reshape(last - first, -1), *(read(ref, first, last) for ref in hybrid[1:])], axis=1)
        ]

    total = blocks * rank + sum(ref.shape[0] for ref in hybrid[:1])
    return [product((a, b, *hybrid), (weight[0], total, weight[1]), (left, 1), (right, 1), scale)]


def fits(settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str | None:
    """Ranks that the scale is made of, and whether there is a LoRA beside the blocks, as the config says."""
    rank, hybrid = shapes[A][2:3], shapes.get(HYBRID_A, (0,))[:1]
    said = settings["r"], settings["hybrid_r"] or 0
    return None if (*rank, *hybrid) == said else f"r and hybrid_r are {said[0]} and {said[1]}, its factors have others"


GRALORA = Kind(
    name="gralora",
    roles=frozenset({A, B, HYBRID_A, HYBRID_B}),
    optional=frozenset({HYBRID_A, HYBRID_B}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    misreadings=ignored(becomes, ZEROS, HYBRID_B),
    spellings={
        "peft": Spelling(
            tag="GRALORA",
            keys={f".{A}": A, f".{B}": B, f".{HYBRID_A}.weight": HYBRID_A, f".{HYBRID_B}.weight": HYBRID_B},
            scale=lambda fields: fields["alpha"] / (fields["r"] + (fields.get("hybrid_r") or 0)),
            settings=frozenset({"r", "hybrid_r"}),
            fits=fits,
            harmless=frozenset({"gralora_k", "gralora_dropout", "init_weights"}),
        )
    },
)
