"""TIES: trim, elect a sign for each element, and average those that agree with it.

τ_i = trim(δ_i);  s = sign(Σ τ_i), + where that is 0;  W + Σ_{i: sign τ_i = s} w_i·τ_i / |{i: sign τ_i = s}|.

By the formula of PEFT 0.21.2, against which it is checked in the tests: weights come after the election, and are not
normalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptertool.methods.method import Array, Method, always
from adaptertool.methods.setting import DENSITY, Settings


def elected(
    base: Array, changes: Sequence[Array], weights: Sequence[float], _settings: Settings, _whole: None
) -> Array:
    """W plus the mean of the weighted changes that have the elected sign; of trimmed changes."""
    total = changes[0].copy()
    for change in changes[1:]:
        total += change
    sign = np.where(total >= 0, 1.0, -1.0)
    result, count = base * 0, base * 0
    for change, weight in zip(changes, weights, strict=True):
        agrees = sign * change > 0
        result += agrees * (weight * change)
        count += agrees
    summed: Array = base + result / np.where(count == 0, 1, count)
    return summed


TIES = Method(
    name="ties",
    source='P. Yadav et al., "TIES-Merging" (arXiv:2306.01708)',
    combine=elected,
    settings={"density": DENSITY},
    trims="density",
    sums=True,
    elementwise=always,
)
