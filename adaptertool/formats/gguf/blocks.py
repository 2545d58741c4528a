"""Factors that are stored in blocks of Q8_0: 32 integers of 8 bits q, after a float16 d, each d·q. As
convert_lora_to_gguf.py writes them with --outtype q8_0."""

from __future__ import annotations

import numpy as np

from adaptertool.kinds.made import made
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref, TensorSpec

Q8_0 = "Q8_0"
_BLOCK, _BYTES = 32, 34  # elements, and bytes with the scale


def unpacked(ref: Ref) -> Ref:
    """The numbers of such a tensor, exact: a product of 11 bits and 8."""
    *outer, wide = ref.shape
    packed = TensorSpec(ref.spec.name, "U8", (*outer, wide // _BLOCK * _BYTES), ref.spec.nbytes)
    stored = Ref(ref.path, ref.offset, packed)

    def rows(read: ReadRows, first: int, last: int) -> Array:
        blocks = read(stored, first, last).astype(np.uint8).reshape(-1, _BYTES)
        scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float64)
        found: Array = scales * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)
        return found

    return made((stored,), ref.shape, rows)
