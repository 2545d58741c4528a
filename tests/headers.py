"""Safetensors files by the byte: malformed ones, each with what the message says, and odd ones that are valid."""

from __future__ import annotations

import json
import struct
from typing import Any

from adaptertool.spec.tensors import DTYPE_BITS

Entry = dict[str, Any]


def packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file. `header` is JSON, or the raw bytes that stand in its place."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: object = "F32", shape: object = (1,), begin: object = 0, end: object = 4, **more: object) -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def one(data: bytes = bytes(4), **fields: Any) -> bytes:
    """A file of one tensor, called `odd`, with some fields of its entry replaced."""
    return packed({"odd": entry() | fields}, data)


def raw_one(shape: bytes = b"[1]", offsets: bytes = b"[0,4]", dtype: bytes = b'"F32"', data: bytes = bytes(4)) -> bytes:
    """The same with each field as literal text, for what json.dumps does not write."""
    return packed(b'{"odd":{"dtype":%s,"shape":%s,"data_offsets":%s}}' % (dtype, shape, offsets), data)


GOOD = one()
FIELD = b'"dtype":"F32","shape":[1],"data_offsets":[0,4]'


# name -> (bytes of the file, what the message must hold beside the path)
MALFORMED: dict[str, tuple[bytes, str]] = {
    # the length, and files that are something else
    "empty file": (b"", "0 bytes"),
    "one byte": (b"{", "1 bytes"),
    "seven bytes": (bytes(7), "7 bytes"),
    "length alone": (struct.pack("<Q", 2), "cut short"),
    "length zero": (packed(b""), "does not begin"),
    "length zero with data": (packed(b"", bytes(16)), "does not begin"),
    "length beyond the file": (packed({}, length=3), "cut short"),
    "length huge": (packed({}, length=2**64 - 1), "cut short"),
    "length with the top bit": (packed({}, length=2**63), "cut short"),
    "length too short for the JSON": (packed({"odd": entry()}, bytes(4), length=20), "not valid JSON"),
    "git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "HTML page": (b"<!DOCTYPE html><html><body>404 not found</body></html>", "HTML"),
    "HTML without doctype": (b"<html><head></head></html>", "HTML"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"),
    "zip, as torch.save writes it": (b"PK\x03\x04\x00\x00\x08\x08" + bytes(64), "zip"),
    "pickle, protocol 2": (b"\x80\x02}q\x00X\x06\x00\x00\x00weight" + bytes(32), "pickle"),
    "pickle, protocol 4": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94", "pickle"),
    # the JSON
    "leading space": (packed(b' {"odd":{%s}}' % FIELD, bytes(4)), "does not begin"),
    "leading newline": (packed(b"\n{}"), "does not begin"),
    "leading byte order mark": (packed(b"\xef\xbb\xbf{}"), "does not begin"),
    "not JSON": (packed(b"{odd}"), "not valid JSON"),
    "a list": (packed([]), "does not begin"),
    "cut JSON": (packed(b'{"odd":{'), "not valid JSON"),
    "trailing comma": (packed(b'{"odd":{%s},}' % FIELD, bytes(4)), "not valid JSON"),
    "two objects": (packed(b"{}{}"), "not valid JSON"),
    "trailing NUL": (packed(b"{}\0\0"), "not valid JSON"),
    "a comment": (packed(b"{/* */}"), "not valid JSON"),
    "single quotes": (packed(b"{'odd':1}"), "not valid JSON"),
    "not UTF-8": (packed(b'{"\xff":{%s}}' % FIELD, bytes(4)), "not valid JSON"),
    "UTF-16": (packed("{}".encode("utf-16-le")), "not valid JSON"),
    "raw control character": (packed(b'{"o\ndd":{%s}}' % FIELD, bytes(4)), "not valid JSON"),
    "lone surrogate": (packed(b'{"odd\\ud800":{%s}}' % FIELD, bytes(4)), ""),
    "lone surrogate in metadata": (packed(b'{"__metadata__":{"odd":"\\udc00"}}'), ""),
    "deep nesting": (packed(b'{"odd":' + b"[" * 100_000), "not valid JSON"),
    "deep nesting of objects": (packed(b'{"odd":' * 100_000), "not valid JSON"),
    "deep nesting, closed": (packed(b'{"odd":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), ""),
    "duplicate tensor": (packed(b'{"odd":{%s},"odd":{%s}}' % (FIELD, FIELD), bytes(4)), "odd"),
    "duplicate through an escape": (packed(b'{"odd":{%s},"\\u006fdd":{%s}}' % (FIELD, FIELD), bytes(4)), "odd"),
    "duplicate field": (packed(b'{"odd":{%s,"dtype":"F32"}}' % FIELD, bytes(4)), "dtype"),
    "duplicate field beside metadata": (
        packed(b'{"__metadata__":{"a":"\xc3\xa9"},"odd":{"dtype":"I8",%s}}' % FIELD, bytes(4)),
        "dtype",
    ),
    "duplicates beside metadata that are none": (
        packed(b'{"__metadata__":7,"odd":{%s,"dtype":"F32","dtype":"F32"}}' % FIELD, bytes(4)),
        "dtype",
    ),
    "duplicate metadata block": (packed(b'{"__metadata__":{},"__metadata__":{}}'), "__metadata__"),
    "duplicate in metadata": (packed(b'{"__metadata__":{"odd":"1","odd":"2"}}'), "odd"),
    "duplicate in metadata, escaped": (packed(b'{"__metadata__":{"odd":"1","\\u006fdd":"2"}}'), "odd"),
    # metadata
    "metadata a list": (packed({"__metadata__": []}), "__metadata__"),
    "duplicate beside metadata null": (
        packed(b'{"__metadata__":null,"odd":{%s,"dtype":"F32"}}' % FIELD, bytes(4)),
        "dtype",
    ),
    "metadata a string": (packed({"__metadata__": "pt"}), "__metadata__"),
    "metadata with a number": (packed({"__metadata__": {"odd": 1}}), "__metadata__"),
    "metadata with null": (packed({"__metadata__": {"odd": None}}), "__metadata__"),
    "metadata nested": (packed({"__metadata__": {"odd": {}}}), "__metadata__"),
    # the entry of a tensor
    "entry null": (packed({"odd": None}), "odd"),
    "entry a list": (packed({"odd": ["F32", [1], [0, 4]]}, bytes(4)), "odd"),
    "entry a number": (packed({"odd": 1}), "odd"),
    "entry empty": (packed({"odd": {}}), "odd"),
    "unknown field": (one(extra=1), "odd"),
    "unknown field null": (one(extra=None), "odd"),
    "field in capitals": (packed({"odd": {"Dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "odd"),
    "no dtype": (packed({"odd": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "odd"),
    "no shape": (packed({"odd": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), "odd"),
    "no offsets": (packed({"odd": {"dtype": "F32", "shape": [1]}}, bytes(4)), "odd"),
    "dtype unknown": (one(dtype="F31"), "F31"),
    "dtype in small letters": (one(dtype="f32"), "f32"),
    "dtype empty": (one(dtype=""), "odd"),
    "dtype null": (one(dtype=None), "odd"),
    "dtype a number": (one(dtype=32), "odd"),
    "dtype a list": (one(dtype=["F32"]), "odd"),
    "dtype an object": (one(dtype={"F32": 1}), "odd"),
    "shape null": (one(shape=None), "odd"),
    "shape a number": (one(shape=1), "odd"),
    "shape a string": (one(shape="1"), "odd"),
    "shape an object": (one(shape={"0": 1}), "odd"),
    "shape negative": (one(shape=[-1]), "odd"),
    "shape twice negative": (one(shape=[-1, -1]), "odd"),
    "shape true": (one(shape=[True]), "odd"),
    "shape false": (one(b"", shape=[False], data_offsets=[0, 0]), "odd"),
    "shape null inside": (one(shape=[None]), "odd"),
    "shape nested": (one(shape=[[1]]), "odd"),
    "shape of strings": (one(shape=["1"]), "odd"),
    "shape float": (raw_one(shape=b"[1.0]"), "odd"),
    "shape in exponent form": (raw_one(shape=b"[1e0]"), "odd"),
    "shape minus zero": (raw_one(shape=b"[-0]", offsets=b"[0,0]", data=b""), "odd"),
    "shape with a leading zero": (raw_one(shape=b"[01]"), "not valid JSON"),
    "shape in hexadecimal": (raw_one(shape=b"[0x1]"), "not valid JSON"),
    "shape NaN": (raw_one(shape=b"[NaN]"), "NaN"),
    "shape Infinity": (raw_one(shape=b"[Infinity]"), "Infinity"),
    "shape minus Infinity": (raw_one(shape=b"[-Infinity]"), "Infinity"),
    "shape 1e400": (raw_one(shape=b"[1e400]"), "odd"),
    "shape of 5000 digits": (raw_one(shape=b"[%s]" % (b"9" * 5000)), "not valid JSON"),
    "shape of 2**64": (one(shape=[2**64]), "odd"),
    "shape overflows to 1": (one(shape=[2**32 + 1, 2**32 - 1]), "odd"),
    "shape overflows to 0": (one(b"", shape=[2**32, 2**32], data_offsets=[0, 0]), "odd"),
    "huge sizes with a zero": (one(b"", shape=[2**63, 2**63, 0], data_offsets=[0, 0]), "odd"),
    "huge sizes below 2**63 with a zero": (one(b"", shape=[2**62, 2**62, 0], data_offsets=[0, 0]), "odd"),
    "shape too large for its bytes": (one(shape=[2]), "odd"),
    "shape too small for its bytes": (one(shape=[0]), "odd"),
    "dtype too wide for its bytes": (one(dtype="F64"), "odd"),
    "sub-byte dtype, half a byte": (one(bytes(2), dtype="F4", shape=[3], data_offsets=[0, 2]), "odd"),
    "sub-byte dtype, half a byte, rounded down": (one(bytes(1), dtype="F4", shape=[3], data_offsets=[0, 1]), "odd"),
    "six-bit dtype, misaligned": (one(bytes(3), dtype="F6_E2M3", shape=[5], data_offsets=[0, 3]), "odd"),
    # offsets
    "offsets null": (one(data_offsets=None), "odd"),
    "offsets an object": (one(data_offsets={"0": 0, "1": 4}), "odd"),
    "offsets one": (one(data_offsets=[4]), "odd"),
    "offsets three": (one(data_offsets=[0, 4, 4]), "odd"),
    "offsets true": (one(bytes(1), dtype="U8", data_offsets=[0, True]), "odd"),
    "offsets negative": (one(data_offsets=[-4, 0]), "odd"),
    "offsets float": (raw_one(offsets=b"[0,4.0]"), "odd"),
    "offsets minus zero": (raw_one(offsets=b"[-0,4]"), "odd"),
    "offsets of strings": (one(data_offsets=["0", "4"]), "odd"),
    "offsets backwards": (one(data_offsets=[4, 0]), "odd"),
    "offsets at 2**64": (one(data_offsets=[2**64, 2**64 + 4]), "odd"),
    "offsets beyond the file": (one(data_offsets=[2**40, 2**40 + 4]), "odd"),
    "hole at the start": (packed({"odd": entry(begin=4, end=8)}, bytes(8)), "odd"),
    "hole in the middle": (packed({"a": entry(), "odd": entry(begin=8, end=12)}, bytes(12)), "odd"),
    "overlap": (packed({"a": entry(), "odd": entry(begin=2, end=6)}, bytes(6)), "odd"),
    "the same bytes twice": (packed({"odd": entry(), "odd2": entry()}, bytes(4)), "odd"),
    "one inside the other": (packed({"a": entry(shape=[4], end=16), "odd": entry(begin=4, end=8)}, bytes(16)), "odd"),
    "empty tensor inside another": (packed({"a": entry(), "odd": entry("U8", [0], 2, 2)}, bytes(4)), "odd"),
    "empty tensor beyond the end": (packed({"odd": entry("U8", [0], 4, 4)}), "odd"),
    "data cut short": (one(bytes(3)), "cut short"),
    "no data": (one(b""), "cut short"),
    "trailing byte": (one(bytes(5)), "after its last tensor"),
    "trailing bytes of an empty file": (packed({}, bytes(8)), "after its last tensor"),
}  # fmt: skip
VALID: dict[str, bytes] = {
    "no tensors": packed({}),
    "metadata alone": packed({"__metadata__": {"format": "pt", "": "", "\x1b": "\n"}}),
    "header that is not aligned": packed(b'{"odd":{%s}} ' % FIELD, bytes(4)),
    "white space after the JSON": packed(b'{"odd":{%s}}\t\r\n ' % FIELD, bytes(4)),
    "white space inside": packed(b'{ "odd" :\n{%s}\t}' % FIELD, bytes(4)),
    "scalar": one(shape=[]),
    "empty tensor": one(b"", shape=[0], data_offsets=[0, 0]),
    "empty tensor, huge other size": one(b"", shape=[0, 2**62, 2**62], data_offsets=[0, 0]),
    "many empty tensors at one place": packed({f"e{n}": entry("I64", [n, 0], 4, 4) for n in range(5)} | {"a": entry()},
                                              bytes(4)),
    "empty tensor between two": packed({"b": entry(begin=4, end=8), "e": entry("U8", [0], 4, 4), "a": entry()},
                                       bytes(8)),
    "order of the header is not that of the data": packed({"b": entry(begin=4, end=8), "a": entry()}, bytes(8)),
    "wide data at an odd place": packed({"a": entry("U8", [3], 0, 3), "b": entry("F64", [1], 3, 11)}, bytes(11)),
    "many dimensions": one(shape=[1] * 40),
    "escaped name": packed(b'{"\\u006fdd":{%s}}' % FIELD, bytes(4)),
    "surrogate pair": packed(b'{"\\ud83d\\ude00":{%s}}' % FIELD, bytes(4)),
    "name with terminal escapes": packed({"\x1b[31m": entry()}, bytes(4)),
    "name with NUL and newline": packed({"a\0b\n": entry()}, bytes(4)),
    "name that climbs": packed({"../../x": entry()}, bytes(4)),
    "name empty": packed({"": entry()}, bytes(4)),
    "name almost reserved": packed({"__metadata": entry()}, bytes(4)),
    "four bits": one(bytes(3), dtype="F4", shape=[3, 2], data_offsets=[0, 3]),
    "six bits": one(bytes(3), dtype="F6_E3M2", shape=[4], data_offsets=[0, 3]),
    "non-finite values": one(struct.pack("<f", float("nan"))),
    # lengths whose low bytes are the magic of a pickle
    "header of 640 bytes": packed((b'{"odd":{%s}}' % FIELD).ljust(640), bytes(4)),
    "header of 1152 bytes": packed((b'{"odd":{%s}}' % FIELD).ljust(1152), bytes(4)),
} | {
    f"dtype {dtype}": one(bytes(bits), dtype=dtype, shape=[2, 4], data_offsets=[0, bits])
    for dtype, bits in DTYPE_BITS.items()
}  # fmt: skip
