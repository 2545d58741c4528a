"""FP4 with scales: two E2M1 codes share a byte, the first of them in its low bits. X is a module.

| | codes, U8 (out, in / 2) | scale (out, in / g) | W = |
| --- | --- | --- | --- |
| compressed-tensors, mxfp4 | X.weight_packed | X.weight_scale, U8, of 32 | code·2^(scale − 127) |
| compressed-tensors, nvfp4 | X.weight_packed | X.weight_scale, E4M3, of 16 | code·scale / X.weight_global_scale |
| ModelOpt, NVFP4 | X.weight | X.weight_scale, E4M3, of 16 | code·scale·X.weight_scale_2 |

All but the quotient are exact in float64 (2, 4 and 24 bits). The quotient is rounded to float64, and an edit that is to
be exact counts on that (Making.over). As it is, it is stored in a
dtype of at most 24 bits as the rational is: of integers of 6 and of 24 bits it is further than 2⁻⁴⁹ of itself from the
middle of two such numbers, if it is not just that, and float64 errs by 2⁻⁵³.

Sources: OCP Microscaling Formats 1.0; compressed-tensors 0.20 (compressors/nvfp4, mxfp4); ModelOpt 0.47
(torch/quantization/qtensor/nvfp4_tensor.py).
"""

from __future__ import annotations

import functools
import math

import numpy as np

from adaptertool.codecs.quantised.grid import Grid
from adaptertool.codecs.quantised.lattice import Lattice, one
from adaptertool.codecs.quantised.misfit import misfit
from adaptertool.codecs.quantised.record import Decoded, Format, Stored, Weight
from adaptertool.codecs.quantised.tables import E2M1, HALF_STEP, numbers, packed_pairs, paired, unpacked_pairs
from adaptertool.errors import UnsupportedError, shown
from adaptertool.numerics.decoding import Coded
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import ReadStored, Ref

_TABLE = paired(E2M1, low_first=True)
_MX, _NV = 32, 16  # elements of a scale


def _packed(stored: Stored, codes: Ref, name: str) -> Weight:
    weight = f"{name}weight"
    scale = stored.need(codes, f"{weight}_scale", ("U8", "F8_E8M0", "F8_E4M3"))
    whole = stored.get(f"{weight}_global_scale", ("F32",))
    if scale.spec.dtype != "F8_E4M3":
        if whole is not None:
            misfit(whole, f"but {shown(scale.spec.name)} is {scale.spec}, as MXFP4 has it, and that has one scale only")
        return _weight(weight, "MXFP4", codes, scale, None, _MX)
    whole = stored.need(codes, f"{weight}_global_scale", ("F32",))
    return _weight(weight, "NVFP4", codes, scale, whole, _NV, divides=True)


def _of_modelopt(stored: Stored, codes: Ref, name: str) -> Weight | None:
    if not name.endswith(".weight") or f"{name}_scale" not in stored.tensors:
        return None
    if stored.settings.method is None:
        raise UnsupportedError(
            f"{codes.path}: {shown(name)} looks like NVFP4, and nothing says whose: some lay out its scales for a GPU. "
            "Give it with its config.json, or use the checkpoint that it was made from"
        )
    module = name.removesuffix(".weight")
    for other in (f"{module}.pre_quant_scale", f"{module}.svdquant_lora_a", f"{name}_svdquant_lora_a"):
        if other in stored.tensors:
            raise UnsupportedError(
                f"{codes.path}: {shown(other)} stands beside {shown(name)}: NVFP4 with scales of activations or "
                "factors (NVFP4_AWQ, NVFP4_SVD) is not decoded; use the checkpoint that it was made from"
            )
    scale = stored.need(codes, f"{name}_scale", ("F8_E4M3",))
    return _weight(name, "NVFP4", codes, scale, stored.need(codes, f"{name}_scale_2", ("F32",)), _NV)


def _weight(
    name: str, called: str, codes: Ref, scale: Ref, whole: Ref | None, group: int, *, divides: bool = False
) -> Weight:
    """Raises MismatchError where shapes do not fit."""
    *lead, half = codes.spec.shape or (0,)
    columns, groups = 2 * half, -(-2 * half // group)
    if not lead or not half or scale.spec.shape != (*lead, groups):
        misfit(scale, f"and {shown(codes.spec.name)} is {codes.spec}: a scale goes with {group} numbers of a row")
    if whole is not None and whole.spec.numel != 1:
        misfit(whole, "and is one number for a weight")

    def coded(read: ReadStored, first: int, last: int) -> Coded:
        scales = numbers(read(scale, groups, first, last), scale.spec.dtype)
        by = 1.0 if whole is None else one(read, whole)
        scales *= 1.0 if divides else by
        which = np.arange(last - first, dtype=np.int32)
        codes_of = read(codes, half, first, last)
        return Coded(codes_of, _TABLE, which, scales, group, columns, divisor=by if divides else 1.0)

    def own(read: ReadStored, first: int, last: int) -> Array:
        return unpacked_pairs(read(codes, half, first, last))

    divisor = functools.partial(one, ref=whole) if divides and whole is not None else None
    parts = (codes, scale) if whole is None else (codes, scale, whole)
    count = math.prod(lead)
    grid = Grid(scale, count, columns, (1, group), (count, groups))
    lattice = Lattice(E2M1, own, packed_pairs, grid, whole, divides, reach=HALF_STEP)
    return Weight(name, (*lead, columns), called, parts, Decoded(coded, divisor), columns, lattice=lattice)


FP4_PACKED = Format(
    name="FP4",
    methods=frozenset({"compressed-tensors"}),
    ends=("weight_packed",),
    dtypes=frozenset({"U8"}),
    find=_packed,
)
NVFP4 = Format(
    name="NVFP4",
    methods=frozenset({"modelopt"}),
    ends=("",),
    dtypes=frozenset({"U8"}),
    find=_of_modelopt,
)
