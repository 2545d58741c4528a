"""GPTQ: integers of 2, 4 or 8 bits, packed into words of 32 along the input. X is a module.

    X.qweight  I32 (in·bits / 32, out): code k of a word at bits·k
    X.qzeros   I32 (groups, out·bits / 32), packed the same along the output
    X.scales   (groups, out)
    X.g_idx    I32 (in,): the group of each input; where it is missing they follow one another

W[o, i] = scales[g, o]·(code[i, o] − zero[g, o]) with g = g_idx[i]: exact in float64 (at most 9 and 24 bits). What is
stored of a zero is zero − 1 by `checkpoint_format: gptq` (v1, and where nothing is said): 1 was taken from all zeros
of a word at once, with borrows, and is added so, modulo 2^32. By gptq_v2 it is the zero.

Source: gptqmodel 7.7 (nn_modules/qlinear/torch.py, utils/model.py: convert_gptq_v1_to_v2_format).
"""

from __future__ import annotations

import numpy as np

from adaptertool.codecs import COMPUTED
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.quantised.misfit import misfit
from adaptertool.codecs.quantised.packed import by_group, groups_of
from adaptertool.codecs.quantised.record import Decoded, Format, Stored, Weight
from adaptertool.errors import UnsupportedError, shown
from adaptertool.numerics.decoding import Coded
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import ReadStored, Ref

_WORD = 32
_BITS = (2, 4, 8)
_FORMATS = {"gptq": 1, "gptq_v2": 0}  # what is to be added to a stored zero


def _find(stored: Stored, codes: Ref, name: str) -> Weight | None:
    fields = stored.settings.fields
    if stored.settings.method != "gptq":
        return None
    bits, said = fields.get("bits"), fields.get("checkpoint_format", "gptq")
    known = said in tuple(_FORMATS) and fields.get("pack_dtype", "int32") == "int32"
    if type(bits) is not int or bits not in _BITS or not known:
        raise UnsupportedError(
            f"{stored.settings.where}: bits {shown(bits)}, checkpoint_format {shown(said)}: of GPTQ {_BITS} bits are "
            f"decoded, as {' and '.join(_FORMATS)} have them; use the checkpoint that it was made from"
        )
    zeros = stored.need(codes, f"{name}qzeros", ("I32",))
    scales = stored.need(codes, f"{name}scales", tuple(COMPUTED))
    order = stored.get(f"{name}g_idx", ("I32",))
    each = _WORD // bits
    if len(codes.spec.shape) != 2 or len(scales.spec.shape) != 2 or not scales.spec.shape[0]:
        misfit(scales, f"and {shown(codes.spec.name)} is {codes.spec}")
    inner, out, groups = codes.spec.shape[0] * each, codes.spec.shape[1], scales.spec.shape[0]
    if scales.spec.shape[1] != out or zeros.spec.shape != (groups, -(-out // each)):
        misfit(zeros, f"{shown(scales.spec.name)} is {scales.spec}, and {shown(codes.spec.name)} {codes.spec}")
    if order is not None and order.spec.shape != (inner,):
        misfit(order, f"and {shown(codes.spec.name)} is {codes.spec}, {bits} bits each")
    size = group_size(stored, scales, inner, groups)
    if order is None and groups > 1 and fields.get("desc_act") is True and fields.get("static_groups") is not True:
        stored.need(codes, f"{name}g_idx")  # else nothing tells which inputs a scale is for

    ones = np.uint32(_FORMATS[said] * sum(1 << (bits * number) for number in range(each)))

    def coded(read: ReadStored, first: int, last: int) -> Coded:
        turned = np.ascontiguousarray(read(codes, out, 0, inner // each, first, last).T)  # packed along the row
        begin = first // each
        words = read(zeros, zeros.spec.shape[1], 0, groups, begin, -(-last // each)) + ones
        zero = _split(np.ascontiguousarray(words.T), bits).reshape(-1, groups)[first - begin * each :][: last - first]
        zero = zero.astype(np.float64)
        scale = doubles(read(scales, out, 0, groups, first, last), scales.spec.dtype).T
        index = None if order is None else groups_of(read, order, inner, groups)
        return by_group(turned, bits, np.arange(1 << bits) * 1.0, (scale, zero), index, (size, inner))

    parts = tuple(ref for ref in (codes, zeros, scales, order) if ref is not None)
    return Weight(f"{name}weight", (out, inner), "GPTQ", parts, Decoded(coded), inner)


def _split(words: Array, bits: int) -> Array:
    """The codes of words (n, m): (n, 32 / bits, m), those of the low bits first."""
    parts = [(words >> np.uint32(bits * number)) & np.uint32((1 << bits) - 1) for number in range(_WORD // bits)]
    return np.stack(parts, axis=1)


def group_size(stored: Stored, scales: Ref, inner: int, groups: int) -> int:
    """How many inputs have a scale in common. Raises MismatchError where they are not as many as the config says."""
    said = stored.settings.fields.get("group_size", stored.settings.fields.get("q_group_size"))
    size = inner if type(said) is not int or said < 1 else said
    if -(-inner // size) != groups:
        misfit(scales, f"and {stored.settings.where} says group_size {shown(said)} for {inner} inputs")
    return size


GPTQ = Format(
    name="GPTQ",
    methods=frozenset({"gptq"}),
    ends=("qweight",),
    dtypes=frozenset({"I32"}),
    find=_find,
)
