"""Layers whose change is a Kronecker product (LoKr), at smaller ranks: as LoRA, for the nearest matrix of a rank is no
Kronecker product. The whole is never made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptertool.algebra.factors import Reduced, at_rank
from adaptertool.codecs.tensors import read_tensor, require_finite
from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.reader import Inputs
from adaptertool.kinds import kind_of
from adaptertool.numerics.device import CPU, Device
from adaptertool.numerics.kronecker import singular_values, svd_of_kronecker
from adaptertool.numerics.lowrank import Factors, Svd, kept, svd_of_product
from adaptertool.numerics.rounding import Array
from adaptertool.spec.choices import RankChoice
from adaptertool.spec.layers import Layer, Pair
from adaptertool.spec.tensors import DTYPE_BITS, Ref


def as_layer(layer: Layer) -> Layer | None:
    """The layer with the rank that its change may have, and factors of it; None where that is no Kronecker product."""
    if layer.unpaired is None or (sides := _sides(layer)) is None:
        return None
    rank = 1
    for side in sides:
        rank *= min(min(ref.shape) for ref in side)
    (pair,) = layer.pairs
    a, b = (
        ref._replace(spec=ref.spec._replace(shape=shape, nbytes=shape[0] * shape[1] * DTYPE_BITS[ref.spec.dtype] // 8))
        for ref, shape in ((pair.a, (rank, pair.inputs)), (pair.b, (pair.outputs, rank)))
    )
    return layer._replace(rank=rank, pairs=(Pair(a, b),))


def reduced_kronecker(
    layer: Layer, inputs: Inputs, cut: RankChoice, *, balanced: bool, device: Device = CPU
) -> tuple[Reduced, Array]:
    """The nearest of a rank by `cut`, and all singular values.

    Raises UnsupportedError where no rank is as near as `cut` asks, since factors are rounded where they are stored.
    """
    sides = _sides(layer)
    assert sides is not None
    first, second = (_decomposed(side, inputs, device) for side in sides)
    values, (pair,) = singular_values(first, second), layer.pairs
    found = None
    for attempt in range(kept(values, cut), layer.rank + 1):
        svd = svd_of_kronecker(first, second, attempt)
        found = at_rank([[svd]], attempt, [(pair.b.spec.dtype, pair.a.spec.dtype)], balanced=balanced)
        if cut.max_error is None or found.error + found.storing <= cut.max_error:
            return found, values
    assert found is not None
    raise UnsupportedError(
        f"{pair.a.path}: {shown(layer.path)}: no LoRA in {pair.a.spec.dtype} is within {cut.max_error} of it: "
        f"at the whole rank, {layer.rank}, its factors are rounded, which makes up to {found.storing:.1e}"
    )


def _sides(layer: Layer) -> tuple[Sequence[Ref], Sequence[Ref]] | None:
    """The factors of both sides."""
    module = layer.unpaired
    assert module is not None
    roles = kind_of(module).kronecker
    if roles is None:
        return None
    first, second = roles(module.factors)
    return tuple(module.factors[role] for role in first), tuple(module.factors[role] for role in second)


def _decomposed(side: Sequence[Ref], inputs: Inputs, device: Device) -> Svd:
    """A side, stored or a product of two."""
    for ref in side:
        require_finite(inputs, ref)
    stored = [read_tensor(inputs, ref, 0, ref.spec.numel).reshape(ref.shape) for ref in side]
    b, a = _product_of(*stored) if len(stored) == 1 else stored
    return svd_of_product(b, a, device.qr)


def _product_of(matrix: Array) -> Factors:
    """A matrix as a product with I on its smaller side."""
    high, wide = matrix.shape
    return (matrix, np.eye(wide)) if wide <= high else (np.eye(high), matrix)
