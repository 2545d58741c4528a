"""Many small tensors in one call of the kernel (kernel/small.h), where a call for each would take longer than the
arithmetic. Without the kernel there is nothing here: they go the way of all others, and the bytes are the same."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adaptertool.numerics.compiled import FUNCTIONS, address

Array = npt.NDArray[Any]
STORED = {"BF16": 0, "F16": 1, "F32": 2, "F64": 3}  # as in kernel/small.h

Tensor = tuple[int, int, int, int, bool]
TENSOR = np.dtype([(name, np.uint64) for name in ("at", "rows", "columns", "products", "few_bits")])
Product = tuple[int, int, int, int, int, bool, float]
PRODUCT = np.dtype(
    [
        *((name, np.uint64) for name in ("right", "left", "right_stored", "left_stored", "rank", "transposed")),
        ("scale", np.float64),
    ]
)
Factor = tuple[int, int, int, int]
FACTOR = np.dtype([(name, np.uint64) for name in ("at", "rows", "columns", "stored")])


class _Job(ctypes.Structure):
    """`small_job` of kernel/small.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "out", "alpha")),
        *((name, ctypes.c_size_t) for name in ("alphas", "count")),
        *((name, ctypes.c_void_p) for name in ("tensors", "products", "factors", "changed", "kept", "update")),
    )


class Changes(NamedTuple):
    """What became of n tensors at a values of α: how many elements changed, -1 for tensors that are not made, and the
    sums of a tally; (n, a) each."""

    changed: npt.NDArray[np.int64]
    kept: npt.NDArray[np.float64]
    update: npt.NDArray[np.float64]


def can(dtype: str) -> bool:
    """Whether the kernel is there, and makes tensors of that dtype."""
    return f"small_{dtype}" in FUNCTIONS


def add_products(
    stored: Array,
    dtype: str,
    tensors: Sequence[Tensor] | Array,
    products: Sequence[Product] | Array,
    factors: Array,
    alphas: Sequence[float],
    out: Sequence[Array],
) -> Changes:
    """out[a] = the rounding of w + α·Σ scale·left @ right, for each tensor of a stretch of a file. What lies between
    them is not touched. Tensors that are not made may be anything: numbers are too large, or not finite, or how they
    are rounded is not certain. At most fused.MOST_ALPHAS of α, none of them 0.

    stored: the stretch, of `dtype`, flat; each of `out` is like it
    tensors: the fields of TENSOR for each: elements of the stretch before it, rows, columns, how many of the products
        are its own, and whether it may be that sums of products are exact
    products: the fields of PRODUCT, in the order of the tensors: where in `factors` the right factor (rank, columns)
        begins, and the left (rows, rank); how they are stored (STORED, not F64); rank; whether they are stored as
        (columns, rank) and (rank, rows); scale
    factors: bytes
    """
    table, list_of_products = np.asarray(tensors, TENSOR), np.asarray(products, PRODUCT)
    shape = len(tensors), len(alphas)
    changes = Changes(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape))
    numbers = np.array(alphas, np.float64)
    targets = np.array([address(one, stored.dtype, stored.size) for one in out], np.uintp)
    job = _Job(
        source=address(stored, stored.dtype, stored.size),
        out=targets.ctypes.data,
        alpha=numbers.ctypes.data,
        alphas=len(alphas),
        count=len(tensors),
        tensors=table.ctypes.data,
        products=list_of_products.ctypes.data,
        factors=address(factors, np.uint8, factors.size),
        changed=changes.changed.ctypes.data,
        kept=changes.kept.ctypes.data,
        update=changes.update.ctypes.data,
    )
    FUNCTIONS[f"small_{dtype}"](ctypes.byref(job))
    return changes


def zero_rows(content: Array, factors: Sequence[Factor] | Array) -> list[int] | None:
    """How many rows of each factor are all zero; None where one holds what is not finite, or there is no kernel.

    content: bytes; factors: the fields of FACTOR for each: where it begins, rows, columns, how it is stored (STORED)
    """
    call, table = FUNCTIONS.get("zero_rows"), np.asarray(factors, FACTOR)
    if call is None:
        return None
    zeros = np.empty(len(factors), np.uint64)
    data = address(content, np.uint8, content.size)
    fine = call(data, table.ctypes.data, len(factors), address(zeros, np.uint64, len(factors)))
    found: list[int] = zeros.tolist()
    return found if fine else None
