"""HRA: W' = W + w·(W·H − W), where H = H[1]·…·H[r] are reflections H[i] = I − 2·u[i]·u[i]ᵀ/‖u[i]‖². With `apply_GS`
the u are made orthogonal first, by Gram and Schmidt: H = I − 2·P, where P projects onto what they span.

H − I is −U·S⁻¹·Uᵀ in both cases: S has the products of the u above its diagonal, and half their squares on it (C.
Puglisi, SIAM J. Sci. Stat. Comput. 13 (1992)); or it is half of UᵀU. So this is a right product with L = U, whose
columns are brought near 1 by powers of two, which changes no reflection. S⁻¹·Uᵀ is made in double-double, and errs by
about r·2^-102 times the condition of S.

Source: S. Yuan et al., "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection
Adaptation" (arXiv:2405.17484). Checked against PEFT 0.21.2 in the tests, which has it on linear layers and square
convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import InputError, shown
from adaptertool.kinds.blocks import Halves
from adaptertool.kinds.kind import Change, Kind, Misreading, Part, Shape
from adaptertool.kinds.made import made, whole
from adaptertool.kinds.right_product import HIGH, LEFT, LOW, RIGHT_PRODUCT
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

U = "hra_u"
ORTHOGONAL = "apply_GS"
_WRONG = 2.0**-70  # of the largest number: errors beyond that tell that S has no inverse


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """U (in, r) for a weight (out, in), or a convolution (out, in, k, k) as its matrix."""
    square = len(weight) == 4 and weight[2] == weight[3]
    if (len(weight) != 2 and not square) or len(factors[U]) != 2 or not factors[U][1]:
        return None
    return {U: (math.prod(weight[1:]), factors[U][1])}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """A right product. Raises InputError, when it is made, for a u of zeros, or, with apply_GS, of others."""
    return [Part(RIGHT_PRODUCT.name, _product(factors[U], orthogonal=bool(settings.get(ORTHOGONAL)), times=1.0), 1.0)]


def projected_away(ref: Ref) -> Mapping[str, Ref]:
    """The factors of a right product that takes away what columns (n, r) span: I − P. Rows raise InputError where
    these depend on each other."""
    return _product(ref, orthogonal=True, times=0.5)


def _product(ref: Ref, *, orthogonal: bool, times: float) -> Mapping[str, Ref]:
    """The factors of a right product by I + times·(H − I); `times` is a power of two."""
    columns, rank = ref.shape

    def left(read: ReadRows, first: int, last: int) -> Array:
        return _sized(whole(read, ref))[first:last]

    def right(read: ReadRows, first: int, last: int) -> Array:
        found = _right(_sized(whole(read, ref)), orthogonal=orthogonal)
        if not found.known.all() or found.error.max(initial=0.0) > _WRONG * abs(found.high).max(initial=0.0):
            raise InputError(
                f"{ref.path}: {shown(ref.spec.name)} has a column of zeros, or one that depends on those before it; "
                "what it stands for is not known"
            )
        return found.parts[:2, first:last] * times

    halves = Halves(right)

    def half(which: int) -> Ref:
        return made((ref,), (rank, columns), lambda read, first, last: halves.take(read, first, last, which))

    return {LEFT: made((ref,), (columns, rank), left), HIGH: half(0), LOW: half(1)}


def _sized(u: Array) -> Array:
    """U with columns whose largest numbers are from 1/2 to 1."""
    return np.ldexp(u, -np.frexp(abs(u).max(0, initial=0.0))[1])


def _right(u: Array, *, orthogonal: bool) -> DoubleDouble:
    """−S⁻¹·Uᵀ (r, in)."""
    transposed = DoubleDouble.of(np.ascontiguousarray(u.T))
    share = np.full((u.shape[1], u.shape[1]), 0.5)
    if not orthogonal:
        share += np.triu(share, 1) - np.tril(share, -1)
    products = (transposed @ DoubleDouble.of(u)) * DoubleDouble.of(share)
    return DoubleDouble.of(np.zeros(transposed.shape)) - _inverse(products) @ transposed


def _inverse(matrix: DoubleDouble) -> DoubleDouble:
    """By Gauss's and Jordan's elimination without a search for pivots: these are positive."""
    size = matrix.shape[0]
    rows = DoubleDouble(np.concatenate([matrix.parts, DoubleDouble.of(np.eye(size)).parts], axis=2))
    for k in range(size):
        row, column = rows[k : k + 1] / rows[k : k + 1, k : k + 1], rows[:, k : k + 1].copy()
        column.parts[:, k] = 0.0
        rows = rows - column * row
        rows[k : k + 1] = row
    return rows[:, size:]


def _back(change: Change) -> Sequence[Part]:
    """The reflections from the last to the first: those of U whose columns are in the reverse order."""
    ref = change.factors[U]
    reverse = made([ref], ref.shape, lambda read, first, last: read(ref, first, last)[:, ::-1])
    return becomes({U: reverse}, change.weight, change.scale, change.settings)


HRA = Kind(
    name="hra",
    roles=frozenset({U}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    misreadings=(Misreading("rotation-transposed", "the reflections are in the other order", _back),),
    spellings={
        "peft": Spelling(
            tag="HRA",
            keys={f".{U}": U},
            rank=None,
            alpha=None,
            settings=frozenset({ORTHOGONAL}),
            check=lambda fields: (
                None if isinstance(fields.get(ORTHOGONAL), bool) else f"{ORTHOGONAL} must be true or false"
            ),
            harmless=frozenset({"r", "init_weights"}),
        )
    },
)
