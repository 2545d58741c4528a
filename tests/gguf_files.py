"""GGUF files, written by struct alone, from the specification: also such as are damaged."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Tensor = tuple[int, Sequence[int], bytes]  # number of the type, shape (rows first), data
F32, F16, Q8_0 = 0, 1, 8
U32, FLOAT, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
_NUMBERS = {np.dtype(np.float32): F32, np.dtype(np.float16): F16, np.dtype(np.float64): 28, np.dtype(np.int32): 26}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def field(key: str | bytes, value: Any, kind: int | None = None) -> bytes:
    """A field; the type of a text, a whole number and another number is told by the value. Bytes are taken as is."""
    kind = kind if kind is not None else STRING if isinstance(value, str) else U32 if type(value) is int else FLOAT
    forms = {
        STRING: text,
        U32: lambda number: struct.pack("<I", number),
        FLOAT: lambda number: struct.pack("<f", number),
    }
    return text(key) + struct.pack("<I", kind) + (value if isinstance(value, bytes) else forms[kind](value))


def info(name: str | bytes, kind: int, shape: Sequence[int], offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


def packed(
    tensors: Mapping[str, Tensor],
    fields: Sequence[bytes] = (),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file. counts: of tensors and fields, instead of those that there are."""
    infos, data = b"", b""
    for name, (kind, shape, content) in tensors.items():
        infos += info(name, kind, shape, len(data))
        data += content + bytes(-len(content) % alignment)
    number, more = counts or (len(tensors), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", version, number, more) + b"".join(fields) + infos
    return head + bytes(-len(head) % alignment) + data


def of_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    return {name: (_NUMBERS[array.dtype], array.shape, array.tobytes()) for name, array in arrays.items()}


def write_model(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], arch: str = "llama", **heads: int) -> Path:
    """A model. heads: fields below its architecture, as attention.head_count (with _ for the dot)."""
    fields = [field("general.architecture", arch), field("general.type", "model")]
    fields += [field(f"{arch}.attention.{key}", count) for key, count in heads.items()]
    path.write_bytes(packed(of_arrays(arrays), fields))
    return path


def write_lora(
    path: Path,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    *more: bytes,
    arch: str = "llama",
    alpha: float | None = 8,
    kind: str = "lora",
) -> Path:
    """An adapter. more: further fields."""
    fields = [field("general.architecture", arch), field("general.type", "adapter"), field("adapter.type", kind)]
    fields += [] if alpha is None else [field("adapter.lora.alpha", float(alpha))]
    path.write_bytes(packed(of_arrays(arrays), [*fields, *more]))
    return path


def read_model(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a file, by gguf-py."""
    gguf = pytest.importorskip("gguf")
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
