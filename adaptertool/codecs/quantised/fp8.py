"""FP8 with scales: a weight of E4M3 (or E5M2) codes, and a scale for all of it, for each row, or for each block.

W[i, j] = code[i, j]·scale[i div m, j div n], of blocks (m, n). It is exact in float64: 4 and 24 bits.

| written by | the scale of X.weight | its blocks |
| --- | --- | --- |
| transformers (`quant_method: fp8`): DeepSeek V3, Qwen3, MiniMax | X.weight_scale_inv | weight_block_size, or one |
| DeepSeek-V4, Mistral | X.scale, X.qscale_weight | the same |
| compressed-tensors (float-quantized), ModelOpt, FBGEMM | X.weight_scale | one, one a row, block_structure |
| compressed-tensors (mxfp8-quantized) | X.weight_scale, U8 | 32 of a row |
| ComfyUI (comfy.py) | X.weight_scale, X.scale_weight | one, one a row |

Without a scale, where nothing says that weights are quantised (files of ComfyUI for one), W = code.

`weight_scale_inv` is the inverse of what the weight was quantised by: all of them multiply. Blocks at the ends may be
smaller: their size is that of the config, and not what the number of scales divides the weight into.

Sources: transformers 5.23 (integrations/finegrained_fp8.py), compressed-tensors 0.20, DeepSeek-V3's fp8_cast_bf16.py.
"""

from __future__ import annotations

import numpy as np

from adaptertool.codecs.quantised.grid import grid_of
from adaptertool.codecs.quantised.lattice import Lattice
from adaptertool.codecs.quantised.misfit import misfit
from adaptertool.codecs.quantised.record import Decoded, Format, Stored, Weight
from adaptertool.codecs.quantised.tables import SCALES, TABLES
from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.numerics.decoding import Coded
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import ReadStored, Ref

_BESIDE = ("_scale_inv", "_scale")  # of the tensor
_OF_MODULE = (".scale", ".qscale_weight", ".scale_weight")  # in the place of `weight`
_MX = (1, 32)


def _find(stored: Stored, codes: Ref, name: str) -> Weight | None:
    names = [name + end for end in _BESIDE]
    if name.endswith(".weight"):
        names += [name.removesuffix(".weight") + end for end in _OF_MODULE]
    found = [one for one in names if one in stored.tensors]
    if not found and stored.settings.plain:
        return _plain(codes, name)
    if not found:
        raise MismatchError(f"{codes.path}: {shown(name)} is stored as {codes.spec.dtype}, without a scale beside it")
    if len(found) > 1:
        raise UnsupportedError(
            f"{codes.path}: {shown(found[0])} and {shown(found[1])} stand beside {shown(name)}; which is its scale?"
        )
    scale = stored.need(codes, found[0], SCALES)
    return scaled(stored, codes, scale, name, "FP8")


def _plain(codes: Ref, name: str) -> Weight:
    """Codes that are the numbers: of any shape."""
    width = max(codes.spec.numel // max((*codes.spec.shape, 1)[0], 1), 1)

    def coded(read: ReadStored, first: int, last: int) -> Coded:
        which = np.zeros(last - first, np.int32)
        return Coded(read(codes, width, first, last), TABLES[codes.spec.dtype], which, np.ones((1, 1)), width, width)

    return Weight(name, codes.spec.shape, "FP8 without scales", (codes,), Decoded(coded), width)


def scaled(stored: Stored, codes: Ref, scale: Ref, name: str, called: str) -> Weight:
    """The weight of codes that are one number each, and a grid of scales. Raises MismatchError where these do not
    fit."""
    shape = codes.spec.shape
    if len(shape) < 2:
        misfit(codes, f"and has {shown(scale.spec.name)} beside it; a quantised weight is a matrix")
    blocks = stored.blocks | ({_MX} if scale.spec.dtype in ("U8", "F8_E8M0") else set())
    # In this one all weights have such blocks; in others some may have a scale a row
    strict = stored.settings.method == "fp8"
    grid, dtype = grid_of(scale, shape, blocks, stored.settings.where, strict=strict), codes.spec.dtype

    def coded(read: ReadStored, first: int, last: int) -> Coded:
        scales, which = grid.scales(read, first, last)
        return Coded(read(codes, shape[-1], first, last), TABLES[dtype], which, scales, grid.block[1], shape[-1])

    def own(read: ReadStored, first: int, last: int) -> Array:
        return np.asarray(read(codes, shape[-1], first, last)).view(np.uint8)

    powers = stored.settings.fields.get("scale_fmt") == "ue8m0"
    lattice = Lattice(TABLES[dtype], own, np.ravel, grid, powers=powers)
    return Weight(name, shape, called, (codes, scale), Decoded(coded), shape[-1], lattice=lattice)


FP8 = Format(
    name="FP8",
    methods=frozenset({"fp8", "compressed-tensors", "modelopt", "fbgemm_fp8"}),
    ends=("",),
    dtypes=frozenset({"F8_E4M3", "F8_E5M2"}),
    find=_find,
)
