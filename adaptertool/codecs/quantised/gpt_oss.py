"""MXFP4 of GPT-OSS: experts as they lie in its checkpoints, which is not how they lie in a dense one.

    X_blocks  U8 (E, n, k / 32, 16): E2M1 codes, two a byte, the first in its low bits
    X_scales  U8 (E, n, k / 32):     exponents + 127
    X         (E, k, n) in a dense checkpoint: W[e, j, i] = code[e, i, j]·2^(scale[e, i, j div 32] − 127)

It is exact in float64. An exponent of 255 is NaN by the standard, and 2^128 to transformers: such a weight is refused
where it is read. Its bias, router and attention are stored as they are in a dense checkpoint.

Source: transformers 5.23 (integrations/mxfp4.py, convert_moe_packed_tensors).
"""

from __future__ import annotations

import numpy as np

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.quantised.grid import Grid
from adaptertool.codecs.quantised.lattice import Lattice
from adaptertool.codecs.quantised.misfit import misfit
from adaptertool.codecs.quantised.record import Format, Stored, Weight
from adaptertool.codecs.quantised.tables import E2M1, E8M0, HALF_STEP, packed_pairs, paired, unpacked_pairs
from adaptertool.errors import shown
from adaptertool.numerics.decoding import Coded, decoded
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import ReadStored, Ref

_GROUP, _BYTES = 32, 16
_TABLE = paired(E2M1, low_first=True)


def _find(stored: Stored, codes: Ref, name: str) -> Weight | None:
    scale, shape = stored.need(codes, f"{name}_scales", ("U8",)), codes.spec.shape
    if len(shape) != 4 or shape[3] != _BYTES or scale.spec.shape != shape[:3] or not all(shape):
        misfit(scale, f"and {shown(codes.spec.name)} is {codes.spec}: a scale goes with {_GROUP} numbers")
    experts, out, groups = shape[:3]
    columns = groups * _GROUP  # k, the rows of what is made

    def rows(read: ReadStored, first: int, last: int, dtype: str = "F64", into: Array | None = None) -> Array:
        values = np.empty((last - first, out), BY_DTYPE[dtype].held) if into is None else into.reshape(-1, out)
        at = first
        while at < last:  # of one expert at a time
            expert, begin = divmod(at, columns)
            end = min(columns, begin + last - at)
            values[at - first : at - first + end - begin] = _turned(read, expert, begin, end, dtype)
            at += end - begin
        return values

    def _turned(read: ReadStored, expert: int, begin: int, end: int, dtype: str) -> Array:
        """Rows begin..end of an expert. Whole groups are decoded, as they lie."""
        own, low, high = (expert * out, (expert + 1) * out), begin // _GROUP, -(-end // _GROUP)
        bytes_of = np.ascontiguousarray(read(codes, columns // 2, *own, low * _BYTES, high * _BYTES))
        scales = E8M0[read(scale, groups, *own, low, high)]
        coded = Coded(bytes_of, _TABLE, np.arange(out, dtype=np.int32), scales, _GROUP, (high - low) * _GROUP)
        turned: Array = decoded(coded, dtype)[:, begin - low * _GROUP :][:, : end - begin].T
        return turned

    def own(read: ReadStored, first: int, last: int) -> Array:
        expert, begin = divmod(first, columns)
        end, low = begin + last - first, begin // 2 * 2
        part = read(codes, columns // 2, expert * out, (expert + 1) * out, low // 2, -(-end // 2))
        return np.ascontiguousarray(unpacked_pairs(part)[:, begin - low : end - low].T)

    def written(turned: Array) -> Array:
        return np.ravel(packed_pairs(np.ascontiguousarray(turned.T)))

    grid = Grid(scale, columns, out, (_GROUP, 1), (groups, out))
    lattice = Lattice(E2M1, own, written, grid, at_once=columns, turned=True, reach=HALF_STEP)
    return Weight(
        name, (experts, columns, out), "MXFP4 of GPT-OSS", (codes, scale), rows, out, casts=True, lattice=lattice
    )


GPT_OSS = Format(
    name="MXFP4",
    methods=frozenset({"mxfp4"}),
    ends=("_blocks",),
    dtypes=frozenset({"U8"}),
    find=_find,
)
