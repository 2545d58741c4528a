"""The header of a GGUF file that is written (files/gguf.py)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.errors import InternalError
from adaptertool.files.gguf import FLOAT, MAGIC, TEXT, TYPES, aligned
from adaptertool.spec.tensors import TensorSpec


def build_gguf(fields: Mapping[str, Any], specs: Sequence[TensorSpec], _: Mapping[str, str], room: int = 0) -> bytes:
    """The first bytes of a GGUF file with these fields (texts, and numbers as FLOAT32) and tensors, one after the
    other, each aligned. Raises InternalError where `room` is another than they take."""
    numbers = {dtype: number for number, (dtype, _, _) in TYPES.items()}
    parts = [MAGIC, struct.pack("<IQQ", 3, len(specs), len(fields))]
    for key, value in fields.items():
        is_text = isinstance(value, str)
        parts += [_packed(key), struct.pack("<I", TEXT if is_text else FLOAT)]
        parts.append(_packed(value) if is_text else struct.pack("<f", value))
    at = 0
    for spec in specs:
        sizes = spec.shape[::-1]
        form = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, numbers[spec.dtype], at)
        parts += [_packed(spec.name), form]
        at = aligned(at + spec.nbytes)
    text = b"".join(parts)
    text += bytes(aligned(len(text)) - len(text))
    if room and len(text) != room:
        raise InternalError(f"a header of {len(text):,} bytes was to have {room:,}")
    return text


def _packed(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
