"""OFT: W' = W + w·(W·Rᵀ − W), where R has blocks (b, b) of Cayley's transform along its diagonal, each of a Q with
Qᵀ = −Q whose numbers above the diagonal are stored: R = (I − Q)·(I + Q)⁻¹, or its series I + 2·Q + 2·Q² + ... with the
sign of Q that PEFT gives it (use_cayley_neumann). An embedding (V, d) is multiplied by R itself.

With `coft`, each Q longer than eps/√n, of n stored blocks, is shortened to that first, as PEFT does when it computes.
The blocks that are made are within about b·2^-104 of the formula (numerics.cayley).

Convolutions of more than one point are refused: PEFT's forward pass turns their unfolded inputs and adds up what
overlaps, which no weight does. Sources: Z. Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning"
(arXiv:2306.07280); Z. Qiu et al., "Orthogonal Finetuning Made Scalable" (arXiv:2506.19847). Checked against PEFT 0.21.2
in the tests; files have been as these since 0.16, those of the series since 0.18.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import MismatchError, shown
from adaptertool.kinds.blocks import negative, rotation, skew
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.misreadings import with_settings
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.cayley import series, transform
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.spec.tensors import ReadRows, Ref

R, EMBEDDED = "oft_R", "oft_embedding_R"
SHARED, PROJECTED, EPS = "block_share", "coft", "eps"
SERIES, TERMS = "use_cayley_neumann", "num_cayley_neumann_terms"
_FINITE = 6  # terms of a series: the fifth power of blocks of float32 is within float64
_SERIES_SINCE = "0.18.0"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """R (in/b, b·(b − 1)/2), or one row for all blocks, for a weight (out, in) or a convolution of one point; of an
    embedding the same with the `out` of its transpose (d, V)."""
    if len(factors) != 1 or len(weight) not in (2, 4) or math.prod(weight[2:]) != 1:
        return None
    ((role, given),) = factors.items()
    columns = weight[0] if role == EMBEDDED else weight[1]
    wide = _wide(given[1]) if len(given) == 2 else 0
    if not wide or columns % wide:
        return None
    return {role: (1 if given[0] == 1 else columns // wide, given[1])}


def _wide(count: int) -> int:
    """b, of b·(b − 1)/2; 0 where there is none from 2 on."""
    wide = (1 + math.isqrt(1 + 8 * count)) // 2
    return wide if wide > 1 and wide * (wide - 1) == 2 * count else 0


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """A rotation. Raises MismatchError for one block where the config says that there are several, and the reverse."""
    ((role, ref),) = factors.items()
    looked_up = role == EMBEDDED
    columns, (count, packed) = weight[0] if looked_up else weight[1], ref.shape
    wide = _wide(packed)
    if count != (1 if settings.get(SHARED) else columns // wide):
        raise MismatchError(
            f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}; with {SHARED} = {bool(settings.get(SHARED))} and "
            f"{columns} columns it must have {1 if settings.get(SHARED) else columns // wide} rows"
        )

    def blocks(read: ReadRows, first: int, last: int) -> DoubleDouble:
        q = skew(read(ref, 0, 1) if count == 1 else read(ref, first, last), wide)
        if settings.get(PROJECTED):
            q = _shortened(q, settings[EPS], count)
        if settings.get(SERIES):
            made = series(q if looked_up else negative(q), settings[TERMS])
        else:
            made = transform(negative(q) if looked_up else q)
        return DoubleDouble(np.repeat(made.parts, last - first, axis=1)) if count == 1 else made

    finite = not settings.get(SERIES) or settings[TERMS] <= _FINITE
    return [rotation((ref,), (1, columns, wide), blocks, turned=looked_up, finite=finite)]


def _shortened(q: DoubleDouble, eps: float, count: int) -> DoubleDouble:
    """Q·min(1, eps/√n/‖Q‖) of each block, with the norm over all elements."""
    flat = q.reshape(len(q.high), -1)
    squares = (flat * flat).sum(1)
    norms = (squares * DoubleDouble.of(np.array([float(count)]))).sqrt()
    longer = ~(norms.high <= eps)  # also where the sum of squares is beyond float64: then they become NaN
    if longer.any():
        factor = DoubleDouble.of(np.full(int(longer.sum()), float(eps))) / norms[longer]
        q = q.copy()
        q[longer] = q[longer] * factor.reshape(-1, 1, 1)
    return q


def check(fields: Mapping[str, Any]) -> str | None:
    """Why these settings are not handled, or None."""
    wrong = [name for name in (SERIES, PROJECTED, SHARED) if not isinstance(fields.get(name, False), bool)]
    if wrong or SERIES not in fields:
        return f"{wrong[0] if wrong else SERIES} must be there, and be true or false: it says what the factors mean"
    if fields[SERIES]:
        version = str(fields.get("peft_version") or "").partition("@")[0]
        numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
        since = tuple(map(int, _SERIES_SINCE.split(".")))
        new = numbers is not None and tuple(map(int, numbers.groups())) >= since
        if not new or (version != _SERIES_SINCE and version.startswith(_SERIES_SINCE)):
            return (
                f"{SERIES}: PEFT before {_SERIES_SINCE} summed another series than later versions do, and peft_version "
                f"is {shown(version) if version else 'not there'}: merge it with the version that trained it"
            )
        if type(fields.get(TERMS)) is not int:
            return f"{TERMS} must be a whole number"
    eps = fields.get(EPS)
    if fields.get(PROJECTED) and not (isinstance(eps, int | float) and 0 <= eps <= 2.0**100):
        return f"{EPS} must be a number from 0 on"
    return None


def _unless(name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    return lambda settings: {**settings, name: False} if settings.get(name) else {}


def _series(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return {} if settings.get(SERIES) else {TERMS: 5, **settings, SERIES: True}


OFT = Kind(
    name="oft",
    roles=frozenset({R, EMBEDDED}),
    optional=frozenset({R, EMBEDDED}),
    shapes=shapes,
    unfit=": PEFT's forward pass is not that of the weight which it merges, nor of any",
    becomes=becomes,
    of_weight=True,
    misreadings=(
        with_settings(becomes, "setting-ignored", f"{PROJECTED} is not done", _unless(PROJECTED)),
        with_settings(becomes, "setting-ignored", f"{SERIES}: the inverse, not the series", _unless(SERIES)),
        with_settings(becomes, "setting-ignored", f"{SERIES}: the series, not the inverse", _series),
    ),
    spellings={
        "peft": Spelling(
            tag="OFT",
            keys={".oft_R.weight": R},
            embedding={".oft_embedding_R.weight": EMBEDDED},
            rank=None,
            alpha=None,
            settings=frozenset({SHARED, PROJECTED, EPS, SERIES, TERMS}),
            check=check,
            harmless=frozenset({"r", "oft_block_size", "module_dropout", "init_weights"}),
            refused={".oft_r": "OFT of PEFT before 0.16 stores other blocks, which are not supported"},
        )
    },
)
