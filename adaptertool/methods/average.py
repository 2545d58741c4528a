"""The weighted mean of whole models: Σ wᵢ·Tᵢ / Σ wᵢ, where the base takes part only as one of the Tᵢ.

Source: "linear" of mergekit 0.1.5, against which it is checked in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaptertool.methods.method import Array, Method, always
from adaptertool.methods.setting import NORMALIZE, Settings, no_sum, only, scales


def mean(base: Array, changes: Sequence[Array], weights: Sequence[float], settings: Settings, _whole: None) -> Array:
    """W + Σ wᵢ·δᵢ / Σ wᵢ, which is the same; without `normalize` Σ wᵢ·W + Σ wᵢ·δᵢ."""
    total = base * 0
    for change, weight in zip(changes, weights, strict=True):
        total += weight * change
    every = sum(weights)
    result: Array = base + total / every if only(settings, "normalize") else every * base + total
    return result


MERGEKIT_LINEAR = Method(
    name="mergekit_linear",
    source='M. Wortsman et al., "Model soups" (arXiv:2203.05482)',
    combine=mean,
    settings={"normalize": NORMALIZE},
    defaults={"normalize": True},
    refuses=no_sum,
    moves=scales,
    elementwise=always,
)
