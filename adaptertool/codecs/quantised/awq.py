"""AWQ (version gemm): integers of 4 bits, eight outputs to a word of 32. X is a module.

    X.qweight  I32 (in, out / 8): output c of eight in the nibble 0, 4, 1, 5, 2, 6, 3, 7
    X.qzeros   I32 (groups, out / 8), the same
    X.scales   (groups, out)

W[o, i] = (code[i, o] − zero[g, o])·scales[g, o] with g = i div group_size: exact in float64.

AWQ has moved scales of activations into the layers before, norms for one: the decoded model computes what the original
does, by other weights. An adapter that was trained on the original does not fit all of them.

Source: AutoAWQ 0.2.9 (utils/packing_utils.py).
"""

from __future__ import annotations

import numpy as np

from adaptertool.codecs import COMPUTED
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.quantised.gptq import group_size
from adaptertool.codecs.quantised.misfit import misfit
from adaptertool.codecs.quantised.record import Decoded, Format, Stored, Weight
from adaptertool.codecs.quantised.tables import padded
from adaptertool.errors import UnsupportedError, shown
from adaptertool.numerics.decoding import Coded
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import ReadStored, Ref

_EACH = 8
_TABLE = padded(np.arange(16) * 1.0)
_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


def _find(stored: Stored, codes: Ref, name: str) -> Weight | None:
    fields = stored.settings.fields
    if stored.settings.method != "awq":
        return None
    bits, version = fields.get("bits", fields.get("w_bit", 4)), str(fields.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise UnsupportedError(
            f"{stored.settings.where}: bits {shown(bits)}, version {shown(version)}: of AWQ 4 bits are decoded, as "
            "version gemm has them; use the checkpoint that it was made from"
        )
    zeros = stored.need(codes, f"{name}qzeros", ("I32",))
    scales = stored.need(codes, f"{name}scales", tuple(COMPUTED))
    if len(codes.spec.shape) != 2 or len(scales.spec.shape) != 2 or not scales.spec.shape[0]:
        misfit(scales, f"and {shown(codes.spec.name)} is {codes.spec}")
    (inner, words), groups = codes.spec.shape, scales.spec.shape[0]
    out = words * _EACH
    if scales.spec.shape[1] != out or zeros.spec.shape != (groups, words):
        misfit(zeros, f"{shown(scales.spec.name)} is {scales.spec}, and {shown(codes.spec.name)} {codes.spec}")
    size = group_size(stored, scales, inner, groups)

    def coded(read: ReadStored, first: int, last: int) -> Coded:
        begin, end = first // _EACH, -(-last // _EACH)
        some = slice(first - begin * _EACH, last - begin * _EACH)
        own = _split(read(codes, words, 0, inner, begin, end))[some].astype(np.uint8)
        zero = _split(read(zeros, words, 0, groups, begin, end))[some].astype(np.float64)
        scale = doubles(read(scales, out, 0, groups, first, last), scales.spec.dtype).T
        which = np.arange(last - first, dtype=np.int32)
        return Coded(own, _TABLE, which, np.ascontiguousarray(scale), size, inner, zero)

    return Weight(f"{name}weight", (out, inner), "AWQ", (codes, zeros, scales), Decoded(coded), inner)


def _split(words: Array) -> Array:
    """The codes of words (n, m), by output: (8·m, n)."""
    turned = np.ascontiguousarray(words.T)
    parts = [(turned >> np.uint32(4 * nibble)) & np.uint32(15) for nibble in _NIBBLES]
    return np.stack(parts, axis=1).reshape(-1, words.shape[0])


AWQ = Format(
    name="AWQ",
    methods=frozenset({"awq"}),
    ends=("qweight",),
    dtypes=frozenset({"I32"}),
    find=_find,
)
