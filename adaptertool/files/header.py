"""The header of a safetensors file, validated more strictly than the reference reader does.

The format (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON object
that begins with `{`, then the data, without holes or overlaps. `safe_open` lets duplicate keys, unknown
fields and leading white space pass; here they are errors, because each makes two readers disagree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError, shown
from adaptertool.files.jsonfile import parse_json
from adaptertool.files.magic import START, as_text, told_apart
from adaptertool.files.reader import open_input, read_exact
from adaptertool.files.store import InputFile
from adaptertool.spec.tensors import DTYPE_BITS, Ref, Stamp, TensorSpec

_Form = tuple[str, tuple[int, ...], int]  # dtype, shape, bytes

_new = tuple.__new__
_FIELDS = {"dtype", "shape", "data_offsets"}
MAX_HEADER_BYTES = 100_000_000  # the limit of the reference reader
MAX_SHOWN = 5_000  # characters of a name that are printed; it may be as long as the header


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
    return _validated(file, 8 + length, parse_json(raw, f"the header of {path}", _strings_in))


def _strings_in(fields: dict[str, Any]) -> int:
    """In a valid header: a name, three keys and a dtype for each tensor; of metadata their name, keys and values."""
    metadata = fields.get("__metadata__", ())
    if not isinstance(metadata, dict | None):
        return 5 * len(fields)
    return 5 * (len(fields) - 1) + 1 + 2 * len(metadata or ())


def _validated(file: InputFile, data_start: int, fields: dict[str, Any]) -> Header:
    metadata = fields.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # MLX writes null for none
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{file.path}: __metadata__ must map strings to strings")
    forms: dict[_Form, _Form] = {}
    refs = [_entry(file.path, data_start, name, entry, forms) for name, entry in fields.items()]
    refs.sort(key=lambda ref: (ref.offset, ref.spec.nbytes))
    end = data_start
    for ref in refs:
        if ref.offset != end:
            what = "overlaps the tensor before it" if ref.offset < end else "leaves a hole before it"
            raise _bad(file.path, ref.spec.name, what)
        end += ref.spec.nbytes
    if end != file.size:
        what, hint = "has bytes after its last tensor", ""
        if end > file.size:
            what, hint = "is cut short", "; fetch it again"
        raise InputError(f"{file.path} {what}: {end:,} bytes by its header, {file.size:,} on disk{hint}")
    return Header(file.path, file.size, data_start, {ref.spec.name: ref for ref in refs}, metadata, file.stamp)


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


def _entry(path: Path, data_start: int, name: str, entry: object, forms: dict[_Form, _Form]) -> Ref:
    """One tensor. What was found to be valid of the others is shared: most have the form of another."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _bad(path, name, "must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _bad(path, name, f"has the unknown dtype {shown(dtype)[:80]}")
    if not _are_naturals(shape):
        raise _bad(path, name, "has a shape that is not a list of sizes")
    if not _are_naturals(offsets) or len(offsets) != 2:
        raise _bad(path, name, "has data_offsets that are not two positions")
    begin, end = offsets
    form = dtype, tuple(shape), end - begin
    if (known := forms.get(form)) is None:
        known = forms[form] = _checked(path, name, form)
    # Without their own functions, which take three times as long: there may be hundreds of thousands
    return _new(Ref, (path, data_start + begin, _new(TensorSpec, (name, *known)), None, None))


def _checked(path: Path, name: str, form: _Form) -> _Form:
    dtype, shape, nbytes = form
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        if bits >= 2**66:
            raise _bad(path, name, "has a shape beyond what the format can address")
    if bits % 8 or nbytes != bits // 8:
        raise _bad(path, name, f"takes {nbytes:,} bytes, but its dtype and shape need {bits / 8:,.10g}")
    return form


def _bad(path: Path, name: str, what: str) -> InputError:
    return InputError(f"{path}: tensor {shown(name[:MAX_SHOWN])} {what}")


def _are_naturals(values: object) -> bool:
    """Whether a value is a list of numbers from 0 on. A loop: for lists this short all() takes twice as long."""
    if not isinstance(values, list):
        return False
    for value in values:  # noqa: SIM110
        if type(value) is not int or not 0 <= value < 2**63:  # type() because True is an int
            return False
    return True
