"""The floating point numbers that weights are stored as. The arithmetic is that of numerics.rounding.

| | bits | significant | exponents of normal numbers |
| --- | --- | --- | --- |
| BF16 | 16 | 8 | −126 .. 127 |
| F16 | 16 | 11 | −14 .. 15 |
| F32 | 32 | 24 | −126 .. 127 |
| F64 | 64 | 53 | −1022 .. 1023 |

Sources: IEEE 754-2019, table 3.5; BF16 is binary32 without its last 16 bits.
"""

from __future__ import annotations

from adaptertool.codecs.codec import Codec
from adaptertool.numerics.rounding import STORED, Array, round_within, widen


def _float(name: str, digits: int, lowest: int) -> Codec:
    """Numbers of (−1)^s·m·2^e with an m of `digits` bits. Exponents are from `lowest` to 1 − lowest."""

    def decode(stored: Array, out: Array) -> float:
        return widen(stored, name, out)

    def encode(values: Array, error: float, relative: float, out: Array, *, quick: bool = False) -> Array:
        return round_within(values, error, relative, name, out, quick=quick)

    return Codec(
        name=name,
        held=STORED[name],
        digits=digits,
        lowest=lowest,
        largest=(2 - 2.0 ** (1 - digits)) * 2.0 ** (1 - lowest),
        decode=decode,
        encode=encode,
    )


BF16 = _float("BF16", 8, -126)
F16 = _float("F16", 11, -14)
F32 = _float("F32", 24, -126)
F64 = _float("F64", 53, -1022)
