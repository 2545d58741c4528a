"""Weights in the blocks of GGUF: 32 or 256 numbers in a row with their scales, as ggml stores them.

Q8_0  d·q                Q4_0  d·(q − 8)              Q4_1  d·q + m
Q5_0  d·(q − 16)         Q5_1  d·q + m                Q6_K  d·scᵢ·(q − 32), 16 numbers with a scale
Q4_K, Q5_K               d·scᵢ·q − dmin·mᵢ, 32 numbers with a scale and a minimum of 6 bits

d, dmin and m are float16, the others integers of few bits. Each number is exact in float64, where ggml rounds some of
them to float32; those of Q4_1, Q5_1, Q4_K and Q5_K but for sums of scales 2³⁰ apart.

Source: ggml-quants.c and gguf-py 0.19 (quants.py), with which this is compared in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from adaptertool.codecs.quantised.record import Weight
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import ReadStored, Ref, TensorSpec

# Blocks (n, bytes) -> their numbers (n, 32 or 256), float64
Decode = Callable[[Array], Array]


def _half(blocks: Array, at: int) -> Array:
    """The float16 at that byte of each block (n, 1)."""
    found: Array = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float64)
    return found


def _nibbles(codes: Array) -> Array:
    """Bytes (n, k) -> (n, 2, k): the lower four bits of all, then the upper four."""
    return np.stack([codes & 15, codes >> 4], axis=1)


def _fifth(blocks: Array, at: int) -> Array:
    """The fifth bits of 32 numbers (n, 32), which lie in 4 bytes."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, at : at + 4]), axis=1, bitorder="little")
    return bits.astype(np.float64) * 16


def _q8_0(blocks: Array) -> Array:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)


def _q4_0(blocks: Array) -> Array:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).reshape(len(blocks), 32) - 8.0)


def _q4_1(blocks: Array) -> Array:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).reshape(len(blocks), 32) + _half(blocks, 2)


def _q5_0(blocks: Array) -> Array:
    codes = _nibbles(blocks[:, 6:]).reshape(len(blocks), 32) + _fifth(blocks, 2)
    found: Array = _half(blocks, 0) * (codes - 16.0)
    return found


def _q5_1(blocks: Array) -> Array:
    codes = _nibbles(blocks[:, 8:]).reshape(len(blocks), 32) + _fifth(blocks, 4)
    found: Array = _half(blocks, 0) * codes + _half(blocks, 2)
    return found


def _scales_and_minima(packed: Array) -> tuple[Array, Array]:
    """The 8 scales and 8 minima (n, 8) of 6 bits that lie in 12 bytes (n, 12)."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6) << 4], axis=1)
    return scales.astype(np.float64), minima.astype(np.float64)


def _with_minima(blocks: Array, codes: Array) -> Array:
    """codes (n, 8, 32)"""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    steps, least = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    found: Array = steps[..., None] * codes - least[..., None]
    return found.reshape(len(blocks), 256)


def _q4_k(blocks: Array) -> Array:
    codes = _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(len(blocks), 8, 32)
    return _with_minima(blocks, codes)


def _q5_k(blocks: Array) -> Array:
    codes = _nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(len(blocks), 8, 32)
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _with_minima(blocks, codes | fifth << 4)


def _q6_k(blocks: Array) -> Array:
    low = _nibbles(blocks[:, :128].reshape(-1, 64)).reshape(len(blocks), 8, 32)
    pairs = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 1, 32) >> pairs & 3).reshape(len(blocks), 8, 32)
    codes = ((low | high << 4).astype(np.float64) - 32).reshape(len(blocks), 16, 16)
    scales = _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    found: Array = (scales[..., None] * codes).reshape(len(blocks), 256)
    return found


# dtype -> elements of a block, its bytes, what decodes it
DECODED: Mapping[str, tuple[int, int, Decode]] = {
    "Q8_0": (32, 34, _q8_0), "Q4_0": (32, 18, _q4_0), "Q4_1": (32, 20, _q4_1), "Q5_0": (32, 22, _q5_0),
    "Q5_1": (32, 24, _q5_1), "Q4_K": (256, 144, _q4_k), "Q5_K": (256, 176, _q5_k), "Q6_K": (256, 210, _q6_k),
}  # fmt: skip


def weight_of(ref: Ref) -> Weight:
    """The weight that blocks of one of these dtypes are."""
    elements, size, decode = DECODED[ref.spec.dtype]
    *outer, wide = ref.shape
    row = wide // elements * size
    stored = Ref(ref.path, ref.offset, TensorSpec(ref.spec.name, "U8", (*outer, row), ref.spec.nbytes))

    def rows(read: ReadStored, first: int, last: int) -> Array:
        return decode(read(stored, row, first, last).reshape(-1, size)).reshape(last - first, wide)

    return Weight(ref.spec.name, ref.shape, ref.spec.dtype, (stored,), rows, wide)
