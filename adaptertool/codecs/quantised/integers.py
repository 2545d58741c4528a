"""Weights of 8-bit integers: W = (q − z)·scale, with a scale (and a zero) for all of it, each row, or a group of a row.

compressed-tensors (int-quantized): X.weight I8, X.weight_scale, and X.weight_zero_point I8 where it is not symmetric.
bitsandbytes (LLM.int8()): X.weight I8, X.SCB F32 (rows,), W = q·SCB / 127; X.weight_format, a number of 0.

The first is exact in float64. The second is a quotient, rounded to float64, and an edit that is to be exact counts on
that (Making.over). As it is, it is stored in a dtype of at most 24 bits
as the rational is, for between a quotient of 31 and 7 bits and the middle of two such numbers lies 2⁻³³ of it at least.

Sources: compressed-tensors 0.20, bitsandbytes 0.50.2 (functional.int8_vectorwise_dequant).
"""

from __future__ import annotations

import numpy as np

from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.quantised.fp8 import scaled
from adaptertool.codecs.quantised.grid import grid_of
from adaptertool.codecs.quantised.misfit import misfit
from adaptertool.codecs.quantised.record import Decoded, Format, Stored, Weight
from adaptertool.codecs.quantised.tables import INT8, SCALES
from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.numerics.decoding import Coded
from adaptertool.spec.tensors import ReadStored, Ref

_LARGEST = 127.0


def _find(stored: Stored, codes: Ref, name: str) -> Weight | None:
    module = name.removesuffix(".weight")
    if module != name and (sizes := stored.get(f"{module}.SCB", ("F32",))) is not None:
        return _of_bitsandbytes(stored, codes, sizes, name)
    scale = stored.get(f"{name}_scale", SCALES)
    if scale is None:
        if f"{module}.scale" in stored.tensors:
            raise UnsupportedError(
                f"{codes.path}: {shown(name)} is stored as I8 with {shown(module)}.scale: two numbers of 4 bits share "
                "a byte (expert_dtype fp4), which is not decoded: use the checkpoint that it was made from"
            )
        raise MismatchError(f"{codes.path}: {shown(name)} is stored as I8, without a scale beside it")
    zero = stored.get(f"{name}_zero_point", ("I8",))
    if zero is None:
        require_symmetric(stored, codes, 8, f"{name}_zero_point")
        return scaled(stored, codes, scale, name, "INT8")
    return _with_zeros(stored, codes, scale, zero, name)


def _with_zeros(stored: Stored, codes: Ref, scale: Ref, zero: Ref, name: str) -> Weight:
    plain, shape = scaled(stored, codes, scale, name, "INT8"), codes.spec.shape
    if zero.spec.shape != scale.spec.shape or len(shape) != 2:
        misfit(zero, f"and {shown(scale.spec.name)} is {scale.spec}")
    blocks = stored.blocks or {(1, -(-shape[1] // max(scale.spec.shape[-1], 1)))}
    grids = [grid_of(ref, shape, blocks, stored.settings.where) for ref in (scale, zero)]

    def coded(read: ReadStored, first: int, last: int) -> Coded:
        (scales, which), (zeros, _) = (grid.scales(read, first, last) for grid in grids)
        return Coded(read(codes, shape[1], first, last), INT8, which, scales, grids[0].block[1], shape[1], zeros)

    return Weight(name, shape, f"{plain.format} with zero points", (codes, scale, zero), Decoded(coded), plain.width)


def require_symmetric(stored: Stored, codes: Ref, bits: int, zero: str) -> None:
    """Raise MismatchError where the config says that all weights of so many bits have zeros, and one has none."""
    groups = [group for group in stored.settings.groups() if group.get("num_bits") == bits]
    if groups and all(group.get("symmetric") is False for group in groups):
        raise MismatchError(
            f"{codes.path}: {shown(codes.spec.name)} has no {shown(zero)} beside it, but {stored.settings.where} says "
            "symmetric: false"
        )


def _of_bitsandbytes(stored: Stored, codes: Ref, sizes: Ref, name: str) -> Weight:
    shape = codes.spec.shape
    if len(shape) != 2 or sizes.spec.numel != shape[0]:
        misfit(sizes, f"and {shown(name)} is {codes.spec}")
    said = stored.get(f"{name.removesuffix('.weight')}.weight_format", ("U8",))
    if said is not None and stored.content(said) != b"\0":
        raise UnsupportedError(
            f"{said.path}: {shown(said.spec.name)} says that rows are laid out for a GPU; save it with a newer version "
            "of bitsandbytes, or use the checkpoint that it was made from"
        )

    def coded(read: ReadStored, first: int, last: int) -> Coded:
        which = np.arange(last - first, dtype=np.int32)
        scales = doubles(read(sizes, 1, first, last), sizes.spec.dtype)
        return Coded(read(codes, shape[1], first, last), INT8, which, scales, shape[1], shape[1], divisor=_LARGEST)

    also = () if said is None else (said.spec.name,)
    return Weight(
        name, shape, "INT8 of bitsandbytes", (codes, sizes), Decoded(coded, lambda _: _LARGEST), shape[1], also
    )


INT_8 = Format(
    name="INT8",
    methods=frozenset({"compressed-tensors", "bitsandbytes", "modelopt", "fp8"}),  # the last to be refused by name
    ends=("",),
    dtypes=frozenset({"I8"}),
    find=_find,
)
