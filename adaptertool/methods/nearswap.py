"""NearSwap: W + s·δ with s = t/max(|δ|, 10⁻⁶), and from 0 to 1: what lies within t of the base is taken whole.

Source: "nearswap" of mergekit 0.1.5, against which it is checked in the tests. t is the weight of the one source.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptertool.methods.method import Array, Method, always
from adaptertool.methods.setting import Settings

_LEAST = 1e-6  # of a difference


def swapped(
    base: Array, changes: Sequence[Array], weights: Sequence[float], _settings: Settings, _whole: None
) -> Array:
    """W + s·δ, for each element."""
    (change,), (t,) = changes, weights
    share = np.clip(t / np.maximum(abs(change), _LEAST), 0, 1)
    result: Array = share * (base + change) + (1 - share) * base
    return result


NEARSWAP = Method(
    name="nearswap",
    source="alchemonaut/QuartetAnemoi-70B-t0.0001 (model card)",
    combine=swapped,
    only=1,
    elementwise=always,
)
