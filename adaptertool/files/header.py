"""The header of a safetensors file, validated more strictly than the reference reader does.

The format (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON object
that begins with `{`, then the data, without holes or overlaps. `safe_open` lets duplicate keys, unknown
fields and leading white space pass; here they are errors, because each makes two readers disagree.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError
from adaptertool.files.entries import bad, read_entries
from adaptertool.files.magic import START, as_text, told_apart
from adaptertool.files.reader import open_input, read_exact
from adaptertool.spec.tensors import Ref, Stamp, TensorSpec

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference reader


@dataclass(frozen=True, slots=True)
class Header:
    """One file of tensors: where its data begins, its tensors in order of offset, its metadata."""

    path: Path
    size: int
    data_start: int
    tensors: Mapping[str, Ref]
    metadata: Mapping[str, str]
    stamp: Stamp
    typed: Mapping[str, Any] | None = None  # what a GGUF file has in the place of metadata (files/gguf.py)

    @property
    def fields(self) -> Mapping[str, Any]:
        """What it says of itself."""
        return self.metadata if self.typed is None else self.typed


def read_header(path: Path) -> Header:
    """Read and validate the header of `path`. Raises InputError, naming the file and the tensor."""
    with open_input(path) as file:
        start = read_exact(file, 0, min(file.size, START))
        length = int.from_bytes(start[:8], "little")
        other = length > file.size - 8 or start[8:9] != b"{"  # else the magic is a length, as 640 is that of a pickle
        if other and (remark := told_apart(start) or as_text(start)):
            raise InputError(f"{path} {remark}")
        if file.size < 8 or length > file.size - 8:
            raise InputError(
                f"{path} is not a safetensors file, or is cut short: it has {file.size:,} bytes; fetch it again"
            )
        if length > MAX_HEADER_BYTES:
            raise InputError(f"{path} claims a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
        raw = read_exact(file, 8, length)
    if not raw.startswith(b"{"):
        raise InputError(f"{path} is not a safetensors file: its header does not begin with '{{'")
    metadata, refs = read_entries(file.path, 8 + length, raw)
    *expected, end = itertools.accumulate([ref.spec.nbytes for ref in refs], initial=8 + length)
    offsets = [ref.offset for ref in refs]
    if offsets != expected:
        ref, place = next(pair for pair in zip(refs, expected, strict=True) if pair[0].offset != pair[1])
        what = "overlaps the tensor before it" if ref.offset < place else "leaves a hole before it"
        raise bad(file.path, ref.spec.name, what)
    if end != file.size:
        what, hint = "has bytes after its last tensor", ""
        if end > file.size:
            what, hint = "is cut short", "; fetch it again"
        raise InputError(f"{file.path} {what}: {end:,} bytes by its header, {file.size:,} on disk{hint}")
    return Header(file.path, file.size, 8 + length, {ref.spec.name: ref for ref in refs}, metadata, file.stamp)


def build_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str], room: int = 0) -> bytes:
    """The first bytes of a file with these tensors one after the other, padded with spaces to a multiple of 8.

    room: so many bytes, where data follows that was written before the header was known.
    """
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in specs:
        fields[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (offset, offset + spec.nbytes)}
        offset += spec.nbytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * max(room - 8 - len(text), -len(text) % 8)
    return len(text).to_bytes(8, "little") + text
