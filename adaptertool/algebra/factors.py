"""The factors of a layer as matrices, cut to a smaller rank and stored again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.codecs.numbers import doubles, largest_stored, rounded
from adaptertool.codecs.tensors import as_bytes, read_tensor, require_finite
from adaptertool.engine.produce import Made
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.numerics.device import CPU, Device
from adaptertool.numerics.lowrank import Factors, Svd, errors, kept, split, storing_error, svd_of_product
from adaptertool.numerics.rounding import Array
from adaptertool.spec.choices import RankChoice
from adaptertool.spec.layers import Layer
from adaptertool.spec.tensors import DTYPE_BITS, TensorSpec


class Reduced(NamedTuple):
    """Factors at a smaller rank, as they are stored. Shares are those of the worst pair, or expert."""

    rank: int
    pairs: tuple[Factors, ...]  # as stored: B (out, E·rank), A (E·rank, in)
    energy: float  # share of Σσ² that is kept
    error: float  # of what is cut off, relative in Frobenius norm: the least that this rank can have
    storing: float  # what rounding to the stored dtype adds to that, at most


def read_pair(inputs: Inputs, layer: Layer, number: int) -> Factors:
    """B (out, E·r) and A (E·r, in) of a pair, float64; of a convolution with all but the first dimension as one."""
    pair = layer.pairs[number]
    for ref in pair:
        require_finite(inputs, ref)
    a, b = (read_tensor(inputs, ref, 0, ref.spec.numel) for ref in pair)
    return in_turns(layer, b.reshape(pair.outputs, -1)), a.reshape(-1, pair.inputs)


def in_turns(layer: Layer, b: Array) -> Array:
    """Rows of lora_B (n, E·r), from the order they are stored in to PEFT's, where the columns of the experts take
    turns."""
    return _repacked(b, layer.experts, layer.rank) if layer.grouped else b


def as_stored(layer: Layer, b: Array) -> Array:
    """Rows of lora_B (n, E·r), from PEFT's order, where the columns of the experts take turns, to the one they are
    stored in."""
    return _repacked(b, layer.rank, layer.experts) if layer.grouped else b


def _repacked(b: Array, slow: int, fast: int) -> Array:
    """Columns i·fast + j as j·slow + i."""
    return b.reshape(len(b), slow, fast).swapaxes(1, 2).reshape(b.shape)


def one_by_one(b: Array, a: Array, experts: int) -> list[Factors]:
    """The factors of each expert, (B (out, r), A (r, in)), of b (out, E·r) and a (E·r, in): in A one expert follows the
    other, in B they take turns."""
    return [(b[:, expert::experts], part) for expert, part in enumerate(np.split(a, experts))]


def together(parts: Sequence[Factors]) -> Factors:
    """The factors of all experts, b (out, E·r) and a (E·r, in), of those of each: what `one_by_one` takes apart."""
    if len(parts) == 1:
        return parts[0]
    b = np.stack([b for b, _ in parts], axis=2)
    return b.reshape(len(b), -1), np.concatenate([a for _, a in parts])


def reduced(
    pairs: Sequence[Sequence[Factors]],
    cut: RankChoice,
    dtypes: Sequence[tuple[str, str]],
    *,
    balanced: bool,
    device: Device = CPU,
) -> Reduced | None:
    """What is left of a layer by `cut`: of all its pairs, and of their experts, the same rank. None where nothing is
    cut off, so that its factors may stay as they are.

    pairs: for each the factors of its experts, float64 (out, r) and (r, in); dtypes: for each those of B and A as
    stored
    """
    full = pairs[0][0][1].shape[0]
    if cut.rank is not None and cut.rank >= full and cut.ratio is None:
        return None
    svds = [[svd_of_product(b, a, device.qr, cut.rank) for b, a in experts] for experts in pairs]
    rank = max(kept(svd.values, cut) for some in svds for svd in some)
    for attempt in range(rank, full):
        found = at_rank(svds, attempt, dtypes, balanced=balanced)
        if cut.max_error is None or found.error + found.storing <= cut.max_error:
            return found
    return None


def at_rank(svds: Sequence[Sequence[Svd]], rank: int, dtypes: Sequence[tuple[str, str]], *, balanced: bool) -> Reduced:
    """A layer at that rank, of the decomposed products B·A of the experts of each pair; stored as `dtypes`, those of B
    and A of each pair."""
    pairs, storing = [], 0.0
    for some, dtypes_of in zip(svds, dtypes, strict=True):
        stored = []
        for svd in some:
            exact = split(svd, rank, balanced=balanced)
            b, a = (rounded(factor, dtype) for factor, dtype in zip(exact, dtypes_of, strict=True))
            wide = doubles(b, dtypes_of[0]), doubles(a, dtypes_of[1])
            storing = max(storing, storing_error(svd, wide, balanced=balanced))
            stored.append(padded(b, a, rank))
        pairs.append(together(stored))
    error = max(float(errors(svd.values)[min(rank, len(svd.values))]) for some in svds for svd in some)
    return Reduced(rank, tuple(pairs), 1 - error**2, error, storing)


def padded(b: Array, a: Array, rank: int) -> Factors:
    """The factors b (out, r) and a (r, in) with zeros up to `rank`, where a weight is smaller than that."""
    if not (missing := rank - len(a)):
        return b, a
    return np.pad(b, ((0, 0), (0, missing))), np.pad(a, ((0, missing), (0, 0)))


def reduced_spec(spec: TensorSpec, axis: int, rank: int, dtype: str) -> TensorSpec:
    """`spec` with `rank` along `axis`."""
    shape = (*spec.shape[:axis], rank, *spec.shape[axis + 1 :])
    return TensorSpec(spec.name, dtype, shape, math.prod(shape) * DTYPE_BITS[dtype] // 8)


def made(spec: TensorSpec, stored: Array, where: str) -> Made:
    """A tensor of the output. stored: its numbers in any shape, held as `spec.dtype` is.

    Raises NonFiniteError, which begins with `where`, for what is beyond the range of the dtype.
    """
    if not math.isfinite(largest_stored(np.ascontiguousarray(stored).reshape(-1), spec.dtype)):
        raise NonFiniteError(f"{where}: {shown(spec.name)} is beyond the range of {spec.dtype}")
    return Made(spec, as_bytes(np.ascontiguousarray(stored).reshape(-1)))
