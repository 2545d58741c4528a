"""Model Stock: from the base towards the mean of the models, as far as the angle between their changes says.

cos θ = the mean of ⟨δᵢ, δⱼ⟩/(‖δᵢ‖·‖δⱼ‖) over all pairs; t = n·cos θ/(1 + (n − 1)·cos θ); W + t·Σ δᵢ/n. Weights are
not asked. With `filter_wise` each row has its own angle. ‖δᵢ‖·‖δⱼ‖ is taken to be 10⁻⁶ where it is less. Of changes
that are so opposite that the divisor is below 10⁻⁶, nothing is taken: t = 0.

Source: "model_stock" of mergekit 0.1.5, against which it is checked in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.methods.geometry import products
from adaptertool.methods.method import Array, Method, Survey
from adaptertool.methods.setting import Setting, Settings, only

_LEAST = 1e-6  # of the product of two norms, and of the divisor

FILTER_WISE = Setting(number=bool, allowed="true or false", default=False, help="An angle for each row.")


def _share(gram: Array) -> Array:
    """t from inner products of the changes, float64 (n, n, ...)."""
    count = len(gram)
    norms = [np.sqrt(gram[i, i]) for i in range(count)]
    total, pairs = gram[0, 0] * 0, 0
    for i in range(count):
        for j in range(i + 1, count):
            total = total + np.clip(gram[i, j] / np.maximum(norms[i] * norms[j], _LEAST), -1, 1)
            pairs += 1
    cosine = total / pairs
    divisor = 1 + (count - 1) * cosine
    opposite = abs(divisor) < _LEAST
    share: Array = np.where(opposite, 0.0, count * cosine / np.where(opposite, 1.0, divisor))
    return share


class Whole(NamedTuple):
    """What is known of a tensor before its first block: t, unless each row has its own, and how long rows are."""

    share: Array | None
    columns: int


def share_of(survey: Survey) -> Whole:
    """t of the whole tensor, where it has one."""
    by_row = only(survey.settings, "filter_wise")
    return Whole(None if by_row else _share(products(survey, of_changes=True)), survey.columns)


def towards_the_mean(
    base: Array, changes: Sequence[Array], _weights: Sequence[float], _settings: Settings, whole: Whole
) -> Array:
    """W + t·Σ δᵢ/n."""
    mean = sum(changes[1:], changes[0].copy()) / len(changes)
    share = whole.share
    if share is None:
        rows = [change.reshape(-1, whole.columns) for change in changes]
        gram = np.array([[(one * other).sum(axis=1) for other in rows] for one in rows])
        share = np.repeat(_share(gram), whole.columns)
    return base + share * mean


MODEL_STOCK = Method(
    name="model_stock",
    source='D.-H. Jang et al., "Model Stock" (arXiv:2403.19522)',
    combine=towards_the_mean,
    settings={"filter_wise": FILTER_WISE},
    survey=share_of,
    elementwise=lambda settings: not only(settings, "filter_wise"),
    rows=True,
    least=2,
)
