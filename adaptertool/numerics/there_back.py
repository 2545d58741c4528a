"""Products of a matrix with few columns, there and back, in one visit of each of its blocks: D·Vᵀ and Dᵀ·D·Vᵀ."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from adaptertool.numerics.compiled import FUNCTIONS, address
from adaptertool.numerics.rounding import Array

COLUMNS = 16  # as in kernel/there_back.h


def there_and_back(
    blocks: Iterable[tuple[int, Array]], right: Array, high: int, *, back: bool
) -> tuple[Array, Array | None]:
    """D·Vᵀ (high, n), and, where `back` is asked for, (Dᵀ·D·Vᵀ)ᵀ (n, wide).

    blocks: (first row, rows) of D, contiguous; right: V (n, wide); all float32 or all float64. By the kernel or BLAS,
    whose sums are not rounded alike.
    """
    if right.dtype == np.float32 and (call := FUNCTIONS.get("there_and_back")) is not None:
        return _by_kernel(call, blocks, right, high, back=back)
    left, total = np.empty((high, len(right)), right.dtype), np.zeros(right.shape, right.dtype) if back else None
    for first, rows in blocks:
        some = left[first : first + len(rows)]
        np.matmul(rows, right.T, out=some)
        if total is not None:
            total += some.T @ rows
    return left, total


def _by_kernel(
    call: object, blocks: Iterable[tuple[int, Array]], right: Array, high: int, *, back: bool
) -> tuple[Array, Array | None]:
    assert callable(call)
    count, wide = right.shape
    panels = -(-count // COLUMNS)
    packed = np.zeros((panels * COLUMNS, wide), np.float32)
    packed[:count] = right
    packed = np.ascontiguousarray(packed.reshape(panels, COLUMNS, wide).swapaxes(1, 2))
    left, total = np.empty((high, panels * COLUMNS), np.float32), np.zeros(packed.shape, np.float32)
    fixed = address(packed, np.float32, packed.size), address(total, np.float32, total.size) if back else None
    for first, rows in blocks:
        some = left[first : first + len(rows)]
        sizes = len(rows) * wide, some.size
        own = address(rows, np.float32, sizes[0]), address(some, np.float32, sizes[1])
        call(own[0], fixed[0], own[1], fixed[1], len(rows), wide, panels)
    found = total.swapaxes(1, 2).reshape(-1, wide)[:count] if back else None
    return left[:, :count], found
