"""OFT and BOFT as LyCORIS writes them: b rows of the weight at a time are multiplied by a matrix, all of them Cayley's
transform R = (I + Q)·(I − Q)⁻¹ of Q = B − Bᵀ; then by `rescale` s, a number for each row, where there is one.

OFT has B (n, b, b):              W'[k] = s[k] ⊙ (R[k]ᵀ·W[k]) for the b rows of block k.
BOFT has B (M, n, b, b), stages:  in stage m, row (c, h, i) of W, 2 by b/2·2^m in each c, stands at place (c, i, h);
                                  then W'[k] = R[m, k]·W[k], and the rows go back. s is that of the last stage.

So Wᵀ is turned by blocks of R, or Rᵀ, and those of the last stage have their columns scaled. They are made within about
b·2^-104 of that (numerics.cayley). `alpha` is no scale there, but a bound, where it is not 0: with c = alpha·out, all Q
of a layer are multiplied by c/q where q = ‖Q‖ + 10^-8, over all of them, is larger than c. sd-scripts' own OFT has the
same keys, and such a bound, and means other blocks. Source: LyCORIS 4.1.3, against whose forward pass this is checked
in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.blocks import rotation, stored_blocks
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import remembered, whole
from adaptertool.kinds.misreadings import ONES, ignored, with_settings
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.cayley import transform
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

BLOCKS, RESCALE, BOUND = "oft_blocks", "rescale", "bound"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """B (out/b, b, b), or (M, out/b, b, b), for a weight (out, in), or that of a convolution as its matrix; s (out, 1,
    ...)."""
    given = factors.get(BLOCKS, ())
    if len(weight) < 2 or len(given) not in (3, 4) or not given[-1] or weight[0] % given[-1]:
        return None
    *stages, _, wide, _ = given
    if stages and (wide % 2 or not stages[0] or weight[0] % (wide << (stages[0] - 1))):
        return None
    expected = {BLOCKS: (*stages, weight[0] // wide, wide, wide)}
    return expected | ({RESCALE: (weight[0], *[1] * (len(weight) - 1))} if RESCALE in factors else {})


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """A rotation of the transpose."""
    stored, rescale = factors[BLOCKS], factors.get(RESCALE)
    *more, count, wide, _ = stored.shape
    stages = more[0] if more else 1
    bound = settings.get(BOUND, 0.0) * weight[0]
    share = remembered(lambda read: _share(whole(read, stored).reshape(-1, wide, wide), bound))
    order = butterfly(stages, weight[0], wide) if more else np.arange(weight[0])[None]

    def blocks(read: ReadRows, first: int, last: int) -> DoubleDouble:
        some = DoubleDouble.of(stored_blocks(read, stored, first, last))
        turned = DoubleDouble(some.parts.swapaxes(2, 3))
        q = turned - some if more else some - turned
        made = transform(q * share(read) if bound else q)
        if rescale is None:
            return made
        numbers = np.ones((stages * count, 1, wide))
        numbers[-count:] = whole(read, rescale).reshape(-1)[order[-1]].reshape(count, 1, wide)
        return made * DoubleDouble.of(numbers[first:last])

    return [rotation(factors.values(), (stages, weight[0], wide), blocks, order, turned=True, finite=True)]


def _share(stored: Array, bound: float) -> DoubleDouble:
    """What all Q are multiplied with: (1, 1, 1)."""
    some = DoubleDouble.of(stored)
    flat = (some - DoubleDouble(some.parts.swapaxes(2, 3))).reshape(1, stored.size)
    size = (flat * flat).sum(1).sqrt() + DoubleDouble.of(np.array([1e-8]))
    share = DoubleDouble.of(np.array([bound])) / size
    return (DoubleDouble.of(np.ones(1)) if size.high[0] <= bound else share).reshape(1, 1, 1)


def butterfly(stages: int, columns: int, wide: int) -> Array:
    """(M, columns): what stands at each place while stage m multiplies."""
    places = np.arange(columns)
    return np.stack([places.reshape(-1, 2, wide // 2 << m).transpose(0, 2, 1).reshape(-1) for m in range(stages)])


LYCORIS_OFT = Kind(
    name="lycoris-oft",
    roles=frozenset({BLOCKS, RESCALE}),
    optional=frozenset({RESCALE}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    misreadings=(
        *ignored(becomes, ONES, RESCALE),
        with_settings(
            becomes,
            "setting-ignored",
            "Q is not kept to its bound",
            lambda settings: {**settings, BOUND: 0.0} if settings.get(BOUND) else {},
        ),
    ),
    spellings={
        "kohya": Spelling(tag="OFT", keys={f".{role}": role for role in (BLOCKS, RESCALE)}, unbounded=True),
    },
)
