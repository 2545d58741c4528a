"""What codes of a few bits mean, as tables in float64; and codes, where several share a byte or a word.

Sources: OCP Microscaling Formats (MX) specification 1.0 (E2M1, E8M0, E4M3 and E5M2, which it has from the OCP 8-bit
floating point specification 1.0).
"""

from __future__ import annotations

import numpy as np

from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.numbers import doubles
from adaptertool.numerics.rounding import Array


def _small_float(bits: int, exponent: int, bias: int) -> Array:
    """All codes of a float of `bits` bits, `exponent` of them its exponent, without infinities and NaN."""
    codes = np.arange(1 << bits)
    mantissa = bits - 1 - exponent
    fraction, power = codes % (1 << mantissa), (codes >> mantissa) % (1 << exponent)
    size = np.ldexp(np.where(power == 0, 0, 1 << mantissa) + fraction * 1.0, np.maximum(power, 1) - bias - mantissa)
    found: Array = np.where(codes >> (bits - 1), -size, size)
    return found


def _with_nan(table: Array, *codes: int) -> Array:
    table[list(codes)] = np.nan
    return table


E2M1 = _small_float(4, 2, 1)
HALF_STEP = 1.0  # of the last codes of E2M1, 4 and 6
E4M3 = _with_nan(_small_float(8, 4, 7), 0x7F, 0xFF)
E5M2 = _with_nan(_small_float(8, 5, 15), *range(0x7C, 0x80), *range(0xFC, 0x100))
INT8 = np.arange(256).astype(np.uint8).view(np.int8).astype(np.float64)
E8M0 = _with_nan(np.ldexp(1.0, np.arange(256) - 127), 0xFF)  # of no use, but NaN is not lost

TABLES = {  # of numbers, by how they are stored
    "F8_E4M3": E4M3,
    "F8_E5M2": E5M2,
    "F8_E8M0": E8M0,
    "U8": E8M0,
    "I8": INT8,
}
SCALES = (*BY_DTYPE, "F8_E8M0", "U8")  # dtypes of scales: floats, and exponents


def numbers(stored: Array, dtype: str) -> Array:
    """What is stored as that dtype, in float64, of the same shape; U8 is an exponent (E8M0)."""
    return looked_up(TABLES[dtype], stored) if dtype in TABLES else doubles(stored, dtype)


def looked_up(table: Array, codes: Array) -> Array:
    """table[codes]; all codes are in the table. `take` with a mode is twice as fast as indexing."""
    return np.take(table, codes, mode="clip")


def paired(table: Array, *, low_first: bool) -> Array:
    """What the two codes of each byte mean, one after the other, of a table with 16: (512,)."""
    codes = np.arange(256)
    low, high = table[codes % 16], table[codes // 16]
    return np.stack((low, high) if low_first else (high, low), axis=1).reshape(-1)


def padded(table: Array) -> Array:
    """A table of at most 256 numbers, for all bytes: of those beyond it there are none."""
    return np.concatenate([table, np.zeros(256 - len(table))])


def packed_pairs(codes: Array) -> Array:
    """Codes of 4 bits (n, 2·k), two a byte, the first in its low bits: flat, uint8."""
    return np.ravel(codes[:, ::2] | codes[:, 1::2] << 4)


def unpacked_pairs(stored: Array) -> Array:
    """The two codes of each byte (n, k), the first in its low bits: (n, 2·k), uint8."""
    stored = np.ascontiguousarray(stored).view(np.uint8)
    return np.stack((stored & 15, stored >> 4), axis=2).reshape(len(stored), -1)


def unpacked(words: Array, bits: int, count: int) -> Array:
    """The first `count` codes of each row: words (n, k) of 32 bits hold them without gaps, low bits first. uint8 (n,
    count)."""
    flat = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return flat[:, :count]
    if bits in (2, 4):
        each = 8 // bits
        parts = [(flat >> (bits * number)) & ((1 << bits) - 1) for number in range(each)]
        return np.stack(parts, axis=2).reshape(len(flat), -1)[:, :count]
    digits = np.unpackbits(flat, axis=1, bitorder="little")[:, : count * bits].reshape(len(flat), count, bits)
    packed: Array = np.packbits(digits, axis=2, bitorder="little")[:, :, 0]
    return packed
