"""The header of a GGUF file that is written (files/gguf.py)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.errors import InternalError
from adaptertool.files.gguf import ALIGNMENT, FLOAT, MAGIC, TEXT, TYPES, Fields, aligned
from adaptertool.spec.tensors import TensorSpec

_NUMBERS = {dtype: number for number, (dtype, _, _) in TYPES.items()}


def with_other_types(fields: Fields, specs: Sequence[TensorSpec]) -> tuple[bytes, list[int], int]:
    """(the first bytes of a file with the same fields and other tensors, where each of these begins, how long the file
    is)"""
    alignment = fields.get("general.alignment", ALIGNMENT)
    places, at = [], 0
    for spec in specs:
        places.append(at)
        at = aligned(at + spec.nbytes, alignment)
    start = MAGIC + struct.pack("<IQQ", 3, len(specs), len(fields)) + fields.stored
    text = start + b"".join(_info(spec, place) for spec, place in zip(specs, places, strict=True))
    text += bytes(aligned(len(text), alignment) - len(text))
    return text, [len(text) + place for place in places], len(text) + at


def with_number(fields: Fields, key: str, number: int) -> Fields:
    """The fields with another number of 32 bits in one of them, where it is there."""
    found = Fields(fields)
    found.stored, found.places = fields.stored, fields.places
    if type(fields.get(key)) is int:
        place = fields.places[key]
        found.stored = fields.stored[:place] + struct.pack("<I", number) + fields.stored[place + 4 :]
        found[key] = number
    return found


def build_gguf(fields: Mapping[str, Any], specs: Sequence[TensorSpec], _: Mapping[str, str], room: int = 0) -> bytes:
    """The first bytes of a GGUF file with these fields (texts, and numbers as FLOAT32) and tensors, one after the
    other, each aligned. Raises InternalError where `room` is another than they take."""
    parts = [MAGIC, struct.pack("<IQQ", 3, len(specs), len(fields))]
    for key, value in fields.items():
        is_text = isinstance(value, str)
        parts += [_packed(key), struct.pack("<I", TEXT if is_text else FLOAT)]
        parts.append(_packed(value) if is_text else struct.pack("<f", value))
    at = 0
    for spec in specs:
        parts.append(_info(spec, at))
        at = aligned(at + spec.nbytes)
    text = b"".join(parts)
    text += bytes(aligned(len(text)) - len(text))
    if room and len(text) != room:
        raise InternalError(f"a header of {len(text):,} bytes was to have {room:,}")
    return text


def _info(spec: TensorSpec, at: int) -> bytes:
    sizes = spec.shape[::-1]
    return _packed(spec.name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, _NUMBERS[spec.dtype], at)


def _packed(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
