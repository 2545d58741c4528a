"""The header of a GGUF file, validated as strictly as that of safetensors (files/header.py).

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3, little-endian: the magic, the
version, numbers of tensors and of fields; the fields: key, type, value; for each tensor its name, dimensions (that of
neighbours first), type, and where in the data it begins; then, aligned, the data: tensor after tensor, each aligned.
llama.cpp demands that order too; gguf-py reads tensors that overlap or have holes between them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.header import Header, read_header
from adaptertool.files.reader import open_input, read_exact
from adaptertool.files.store import InputFile
from adaptertool.spec.tensors import Ref, TensorSpec

MAGIC, ALIGNMENT = b"GGUF", 32  # bytes, where general.alignment says no others
MAX_HEADER_BYTES = 100_000_000  # vocabularies of the largest models take some 20 MB
_CHUNK = 1 << 20  # bytes that are read first, of a header whose length is not written down
_MAX_NAME = 64  # bytes of a tensor's name
_MAX_KEY = 1 << 16  # bytes of a field's
_MAX_DIMENSIONS = 4
_FEWEST = 13, 24  # bytes of a field, and of what is said of a tensor

# Number of a type -> dtype, elements of a block, its bytes. As gguf-py 0.19 (GGML_QUANT_SIZES).
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 28: ("F64", 1, 8), 30: ("BF16", 1, 2),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}  # fmt: skip

BLOCKS = frozenset(dtype for dtype, elements, _ in TYPES.values() if elements > 1)

# Number of a field's type -> how struct reads it
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT, _BOOL, TEXT, _ARRAY = 6, 7, 8, 9


class Array(NamedTuple):
    """The value of a field that is a list, as it is stored: of numbers side by side, or of texts, each after its
    length."""

    type: int
    length: int
    content: bytes


class Fields(dict[str, Any]):
    """The fields of a file, by key; and as they are stored, one after the other."""

    stored: bytes = b""
    places: Mapping[str, int]  # where in that the value of a scalar is, by key


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does, whatever its name. Raises InputError for what is no file, StorageError."""
    with open_input(path) as file:
        return read_exact(file, 0, min(file.size, len(MAGIC))) == MAGIC


def read_any(path: Path) -> Header:
    """The header of a file of tensors, GGUF or safetensors: what has a name of safetensors is to be of these. Raises
    InputError, naming the file and the tensor."""
    return read_gguf(path) if path.suffix != ".safetensors" and is_gguf(path) else read_header(path)


def read_gguf(path: Path) -> Header:
    """Read and validate the header of `path`. Raises InputError, naming the file and the tensor, and UnsupportedError
    for versions, byte orders and types that are not known, and for one file of several."""
    with open_input(path) as file:
        cursor = _Cursor(file)
        cursor.take(len(MAGIC), "its magic")
        _require_version(path, cursor.number("<I", "its version"))
        tensors, count = (cursor.number("<Q", what) for what in ("its number of tensors", "its number of fields"))
        for number, least, what in ((count, _FEWEST[0], "fields"), (tensors, _FEWEST[1], "tensors")):
            if number * least > file.size:
                raise InputError(f"{path} claims {number:,} {what}, and has {file.size:,} bytes: it is damaged")
        fields = _fields(cursor, count)
        if (parts := fields.get("split.count", 1)) != 1:
            raise UnsupportedError(
                f"{path} is one of {shown(parts)} files that make a model; these are not supported yet: make one file "
                "of them (llama-gguf-split --merge)"
            )
        alignment = fields.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise InputError(f"{path}: general.alignment is {shown(alignment)}; it is to be a power of two")
        infos = list(_infos(cursor, tensors))
        start = aligned(cursor.at, alignment)
        refs = {spec.name: Ref(path, start + at, spec) for spec, at in infos}
        _require_order(path, file.size, start, alignment, list(refs.values()))
        return Header(path, file.size, min(start, file.size), refs, {}, file.stamp, fields)


class _Cursor:
    """Reads a file from its beginning, as far as it is asked for."""

    def __init__(self, file: InputFile) -> None:
        self.file, self.at, self._read = file, 0, bytearray()

    def take(self, size: int, what: str) -> bytes:
        """The next bytes. Raises InputError where the file ends before, or a header would be that long."""
        begin, end = self.at, self.at + size
        self._reach(end, what)
        self.at = end
        return bytes(self._read[begin:end])

    def _reach(self, end: int, what: str) -> None:
        """Have the bytes up to there. Raises InputError as `take` does."""
        if end > self.file.size:
            raise InputError(
                f"{self.file.path} is cut short: {what} ends at byte {end:,}, and the file at {self.file.size:,}"
            )
        if end > MAX_HEADER_BYTES:
            raise InputError(
                f"{self.file.path} has a header beyond {MAX_HEADER_BYTES:,} bytes ({what}); no more are read"
            )
        if end > (have := len(self._read)):
            until = min(max(end, 2 * have, _CHUNK), self.file.size)
            self._read += read_exact(self.file, have, until - have)

    def since(self, begin: int) -> bytes:
        """What was taken since then."""
        return bytes(self._read[begin : self.at])

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def texts(self, count: int, what: str) -> bytes:
        """The next so many texts, each after its length: a vocabulary has hundreds of thousands. Raises InputError as
        `take` does."""
        at = self.at
        for _ in range(count):
            if at + 8 > len(self._read):
                self._reach(at + 8, what)
            at += 8 + int.from_bytes(self._read[at : at + 8], "little")
        return self.take(at - self.at, what)

    def text(self, what: str, most: int = MAX_HEADER_BYTES) -> str:
        """A text after its length. Raises InputError where it is too long, or no UTF-8."""
        length = self.number("<Q", what)
        if length > most:
            raise InputError(f"{self.file.path}: {what} has {length:,} bytes; at most {most:,} are read")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.file.path}: {what} is no UTF-8: {error}") from error


def _require_version(path: Path, version: int) -> None:
    if version and not version & 0xFFFF:
        raise UnsupportedError(f"{path} is a GGUF file in big-endian order, which is not supported: convert it anew")
    if version not in (2, 3):
        raise UnsupportedError(f"{path} is GGUF of version {version}; versions 2 and 3 are read")


def _fields(cursor: _Cursor, count: int) -> Fields:
    fields, begin, places = Fields(), cursor.at, dict[str, int]()
    for number in range(count):
        key = cursor.text(f"the key of field {number}", _MAX_KEY)
        if key in fields:
            raise InputError(f"{cursor.file.path} has the field {shown(key)} twice")
        kind = cursor.number("<I", f"field {shown(key)}")
        places[key] = cursor.at - begin
        fields[key] = _value(cursor, kind, f"field {shown(key)}")
    fields.stored, fields.places = cursor.since(begin), places
    return fields


def _value(cursor: _Cursor, kind: int, what: str) -> Any:
    if kind == TEXT:
        return cursor.text(what)
    if kind == _ARRAY:
        return _array(cursor, what)
    if kind not in _SCALARS:
        raise UnsupportedError(f"{cursor.file.path}: {what} has the type {kind}, which is not known")
    if kind == _BOOL and (byte := cursor.number("<B", what)) not in (0, 1):
        raise InputError(f"{cursor.file.path}: {what} is {byte}, and to be true (1) or false (0)")
    return bool(byte) if kind == _BOOL else cursor.number(f"<{_SCALARS[kind]}", what)


def _array(cursor: _Cursor, what: str) -> Array:
    kind, count = cursor.number("<I", what), cursor.number("<Q", what)
    if kind in _SCALARS:
        return Array(kind, count, cursor.take(count * struct.calcsize(f"<{_SCALARS[kind]}"), what))
    if kind != TEXT:
        raise UnsupportedError(f"{cursor.file.path}: {what} is a list of the type {kind}, which is not known")
    if 8 * count > cursor.file.size:
        raise InputError(f"{cursor.file.path}: {what} claims {count:,} texts: the file is damaged")
    return Array(kind, count, cursor.texts(count, what))


def _infos(cursor: _Cursor, count: int) -> Iterator[tuple[TensorSpec, int]]:
    """What is said of each tensor, and where in the data it begins."""
    names = set()
    for number in range(count):
        name = cursor.text(f"the name of tensor {number}", _MAX_NAME)
        if not name:
            raise InputError(f"{cursor.file.path}: tensor {number} has no name: the file is damaged")
        if name in names:
            raise InputError(f"{cursor.file.path} has the tensor {shown(name)} twice")
        names.add(name)
        what = f"tensor {shown(name)}"
        dimensions = cursor.number("<I", what)
        if dimensions > _MAX_DIMENSIONS:
            raise InputError(f"{cursor.file.path}: {what} has {dimensions:,} dimensions; at most 4 are known")
        sizes = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions, what))
        kind, offset = cursor.number("<I", what), cursor.number("<Q", what)
        yield _spec(cursor.file.path, name, sizes, kind), offset


def _spec(path: Path, name: str, sizes: tuple[int, ...], kind: int) -> TensorSpec:
    what, count = f"{path}: tensor {shown(name)}", 1
    if kind not in TYPES:
        raise UnsupportedError(f"{what} has the type {kind}, which is not known")
    dtype, block, size = TYPES[kind]
    for one in sizes:
        count *= one
        if count >= 2**60:
            raise InputError(f"{what} has a shape beyond what a file can hold")
    if (sizes[0] if sizes else 1) % block:
        raise InputError(f"{what} is {dtype}, in blocks of {block}, and its rows have {sizes[:1] or 1} elements")
    return TensorSpec(name, dtype, sizes[::-1], count // block * size)


def _require_order(path: Path, size: int, start: int, alignment: int, refs: list[Ref]) -> None:
    """Raise InputError unless each tensor begins where the one before it ends, but for the alignment."""
    end = start
    for ref in refs:
        if ref.offset != (next_one := aligned(end, alignment)):
            where = f"begins at byte {ref.offset - start:,} of the data, not at {next_one - start:,}"
            raise InputError(f"{path}: tensor {shown(ref.spec.name)} {where}: the file is damaged")
        end = ref.offset + ref.spec.nbytes
    if end > size and refs:
        raise InputError(f"{path} is cut short: {end:,} bytes by its header, {size:,} on disk; fetch it again")
    if aligned(end, alignment) < size:
        raise InputError(f"{path} has {size - end:,} bytes after its last tensor: the file is damaged")


def aligned(position: int, alignment: int = ALIGNMENT) -> int:
    """The next position that is a multiple."""
    return -(-position // alignment) * alignment
