"""RoAd: W' = W + w·(R·W − W), and R·b for the bias, where R turns pairs of rows by θ and scales them by α. Row i and
row j = i + g/2 of the first and the second half of a group of g:

    y[i] = α·cos θ·x[i] − α·sin θ·x[j];    y[j] = α·sin θ·x[i] + α·cos θ·x[j]

with one θ and α for a pair (road_1), one for each row of R (road_2), or one for each of its numbers (road_4). Cosines
and sines are within 2^-103 of their true values, on every machine (numerics.angles).

Source: P. Liao, C. Monz, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability"
(arXiv:2409.00119). Checked against PEFT 0.21.2 in the tests, which has it on linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import MismatchError, shown
from adaptertool.kinds.blocks import rotation
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import whole
from adaptertool.kinds.misreadings import ONES, ignored
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.angles import cosines_and_sines
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

THETA, ALPHA = "road_theta", "road_alpha"
VARIANT, GROUP = "variant", "group_size"
_BIAS = "road-bias"
_HALVES = {"road_1": 1, "road_2": 2, "road_4": 4}  # variant -> numbers for each two rows


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """θ and α (n,) for a weight (out, in): n is half of out, out, or twice as many."""
    return None if len(weight) != 2 else _vectors(weight[0], factors)


def shapes_of_bias(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """The same, for a bias (out,)."""
    return None if len(weight) != 1 else _vectors(weight[0], factors)


def _vectors(rows: int, factors: Mapping[str, Shape]) -> Mapping[str, Shape]:
    known = {(rows * halves // 2,) for halves in _HALVES.values()}
    size = factors[THETA] if factors[THETA] in known else (rows,)
    return {THETA: size, ALPHA: size}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """A rotation of the transpose, of pairs. Raises MismatchError for sizes other than the config says."""
    theta, alpha = factors[THETA], factors[ALPHA]
    rows, group, halves = weight[0], settings[GROUP], _HALVES[settings[VARIANT]]
    if rows % group or theta.shape != (rows * halves // 2,):
        raise MismatchError(
            f"{theta.path}: {shown(theta.spec.name)} is {theta.spec}; {settings[VARIANT]} with groups of {group} does "
            f"not have that for {rows} rows"
        )
    pairs = np.arange(rows).reshape(-1, 2, group // 2).swapaxes(1, 2).reshape(-1, 2)

    def blocks(read: ReadRows, first: int, last: int) -> DoubleDouble:
        places = _places(pairs[first:last], halves, group)
        angles, back = np.unique(whole(read, theta)[places].reshape(-1), return_inverse=True)
        scales = DoubleDouble.of(whole(read, alpha)[places].reshape(-1))
        cosines, sines = (found[back] * scales for found in cosines_and_sines(angles))
        count = last - first
        made = np.empty((3, count, 2, 2))
        cosine, sine = (found.parts.reshape(3, 2, 2, count) for found in (cosines, sines))
        made[:, :, 0, 0], made[:, :, 1, 1] = cosine[:, 0, 0], cosine[:, 0, 1]
        made[:, :, 1, 0], made[:, :, 0, 1] = -sine[:, 1, 0], sine[:, 1, 1]
        made[2] = abs(made[2])
        return DoubleDouble(made)

    return [rotation((theta, alpha), (1, rows, 2), blocks, pairs.reshape(1, -1), turned=True, finite=True)]


def _places(pairs: Array, halves: int, group: int) -> Array:
    """Where the θ and α of pairs of rows (n, 2) stand: (2, 2, n) for the cosines, then the sines, of row i, then j."""
    if halves == 1:
        one = pairs[:, 0] // group * (group // 2) + pairs[:, 0] % group
        return np.stack([[one, one], [one, one]])
    if halves == 2:
        return np.stack([pairs.T, pairs.T])
    apart = (pairs + pairs // group * group).T
    return np.stack([apart, apart + group])


def check(fields: Mapping[str, Any]) -> str | None:
    """Why these settings are not handled, or None."""
    variant, group = fields.get(VARIANT), fields.get(GROUP)
    if not isinstance(variant, str) or variant not in _HALVES:
        return f"{VARIANT} = {shown(variant)[:80]} is not known; {', '.join(_HALVES)} are"
    if type(group) is not int or group < 2 or group % 2:
        return f"{GROUP} must be an even number from 2 on"
    return None


ROAD = Kind(
    name="road",
    roles=frozenset({THETA, ALPHA}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    misreadings=ignored(becomes, ONES, ALPHA),
    spellings={
        "peft": Spelling(
            tag="ROAD",
            keys={f".{role}": role for role in (THETA, ALPHA)},
            rank=None,
            alpha=None,
            bias=_BIAS,
            settings=frozenset({VARIANT, GROUP}),
            check=check,
            harmless=frozenset({"init_weights"}),
        )
    },
)
ROAD_BIAS = Kind(name=_BIAS, roles=ROAD.roles, shapes=shapes_of_bias, becomes=becomes, of_weight=True)
