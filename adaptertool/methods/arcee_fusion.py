"""Arcee Fusion: of a tuned model the changes that matter are taken whole, all others left out.

For each element: importance = |δ|·D, with D = Σ p·ln(p/q) over its row, p = softmax(T) + 10⁻⁸, q = softmax(W) + 10⁻⁸.
It matters where its importance is at least median + 1.5·(third − first quartile) of those of the whole tensor; the
quantile x is the element ⌊x·(n − 1)⌋ of the n in order.

Source: "arcee_fusion" of mergekit 0.1.5, against which it is checked in the tests; there the quantiles of tensors of
more than a million elements are those of a sample by chance, here of all elements.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from adaptertool.methods.method import Array, Found, Method, Survey
from adaptertool.methods.setting import Settings
from adaptertool.numerics.elementary import exp, log
from adaptertool.numerics.top_k import largest

_LEAST = 1e-8  # added to each probability


class Whole(NamedTuple):
    """What is known of a tensor before its first block."""

    threshold: float
    columns: int


def _softmax(rows: Array) -> Array:
    grown = exp(rows - rows.max(axis=1, keepdims=True))
    probability: Array = grown / grown.sum(axis=1, keepdims=True) + _LEAST
    return probability


def importance(base: Array, change: Array, columns: int) -> Array:
    """|δ|·D of a block of whole rows, flat."""
    rows, moved = base.reshape(-1, columns), (base + change).reshape(-1, columns)
    p, q = _softmax(moved), _softmax(rows)
    divergence = (p * log(p / q)).sum(axis=1, keepdims=True)
    flat: Array = (abs(moved - rows) * divergence).reshape(-1)
    return flat


def threshold(survey: Survey) -> Whole:
    """The least importance that matters."""

    def scores(function: Callable[[Array], Found], low: float = 0.0) -> Iterable[Found]:
        return survey.each(lambda block: function(importance(block.base, block.changes[0], survey.columns) - low))

    # Magnitudes are in order of importance where these are not negative; D may be, by rounding
    low = min(0.0, *scores(lambda part: float(part.min())))
    size = sum(survey.each(lambda block: block.base.size))
    first, middle, third = (
        largest(functools.partial(scores, low=low), size - int(share * (size - 1))).bound + low
        for share in (0.25, 0.5, 0.75)
    )
    return Whole(middle + 1.5 * (third - first), survey.columns)


def fused(base: Array, changes: Sequence[Array], _weights: Sequence[float], _settings: Settings, whole: Whole) -> Array:
    """W + δ where it matters, else W."""
    (change,) = changes
    return base + (importance(base, change, whole.columns) >= whole.threshold) * change


ARCEE_FUSION = Method(
    name="arcee_fusion",
    source='Arcee, "Meet Arcee Fusion" (arcee.ai)',
    combine=fused,
    survey=threshold,
    rows=True,
    only=1,
)
