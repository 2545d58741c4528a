"""What it costs to keep adapters beside the weights: layers of random numbers, timed both ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from threadpoolctl import threadpool_limits

from adaptertool.numerics.rounding import Array
from adaptertool.reports.drift import LayerCost

BATCHES = (1, 64)  # tokens at once
_ELEMENTS = 1 << 26  # of the weight that is timed: of larger ones a part of the rows
_SECONDS = 0.1  # for each way, at least
_REPEATS = 5  # of the timing, each way in turn

Form = tuple[int, int, int]  # out, in, rank


def layer_costs(forms: Mapping[Form, int]) -> tuple[LayerCost, ...]:
    """For each form, of which there are so many layers, the seconds of y = x·W'ᵀ and of y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ, with
    float32 on one core (numpy's BLAS): the better of several runs, that take turns."""
    with threadpool_limits(1, "blas"):
        return tuple(
            LayerCost((out, width), rank, layers, batch, *_time(out, width, rank, batch))
            for (out, width, rank), layers in sorted(forms.items())
            for batch in BATCHES
        )


def _time(out: int, width: int, rank: int, batch: int) -> tuple[float, float]:
    rows = min(out, max(1, _ELEMENTS // width))
    some = np.random.default_rng(0)
    x, w, a, b = (
        some.standard_normal(shape, np.float32)
        for shape in ((batch, width), (rows, width), (rank, width), (rows, rank))
    )

    def merged() -> Array:
        return x @ w.T

    def unmerged() -> Array:
        y = x @ w.T
        y += (x @ a.T) @ b.T * np.float32(2)
        return y

    both = merged, unmerged
    calls = [max(1, int(_SECONDS / _REPEATS / max(_seconds(way, 1), 1e-9))) for way in both]
    runs = [[_seconds(way, count) for way, count in zip(both, calls, strict=True)] for _ in range(_REPEATS)]
    best = [min(times) * out / rows for times in zip(*runs, strict=True)]
    return best[0], best[1]


def _seconds(call: Callable[[], Array], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count
