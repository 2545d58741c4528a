"""Malformed files, checkpoints and adapters by name: what each is, and the words that must be said about it.

Of malformed safetensors files most stand in test_header.py already; here are more of them.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import Tensors, lora_factors, write_adapter, write_checkpoint
from headers import FIELD, GOOD, MALFORMED, entry, one, packed, raw_one
from safetensors.torch import save, save_file

Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.0.self_attn.k_proj"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = {f"{Q}.weight": torch.zeros(8, 6), f"{K}.weight": torch.zeros(8, 6), "model.norm.weight": torch.ones(6),
        f"{Q}.bias": torch.zeros(8)}  # fmt: skip

# --- safetensors files: name -> (bytes, words of the message beside the path) ---


def _zip() -> bytes:
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w") as file:
        file.writestr("archive/data.pkl", b"x" * 600)
    return into.getvalue()


def _tar() -> bytes:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w") as file:
        info = tarfile.TarInfo("model.safetensors")
        info.size = len(GOOD)
        file.addfile(info, io.BytesIO(GOOD))
    return into.getvalue()


def _torch_pickle(*, new: bool) -> bytes:
    into = io.BytesIO()
    torch.save({"odd": torch.zeros(1)}, into, _use_new_zipfile_serialization=new)
    return into.getvalue()


def _npy() -> bytes:
    into = io.BytesIO()
    np.save(into, np.zeros(100))
    return into.getvalue()


def _changed(at: int, value: int) -> bytes:
    return GOOD[:at] + bytes([value]) + GOOD[at + 1 :]


_REAL = save({f"{Q}.weight": torch.ones(8, 6), f"{K}.weight": torch.ones(8, 6)})
_HEADER_END = 8 + int.from_bytes(_REAL[:8], "little")
_NAN = b'{"odd":{%s},"x":NaN}' % FIELD
MORE_FILES: dict[str, tuple[bytes, str]] = {
    # other files
    "JSON of a server's error": (b'{"error":"Repository not found or gated"}', "it begins: {\"error\""),
    "text of a server's error": (b"Invalid username or password.", "it begins: Invalid username"),
    "text over lines": (b"Entry\nnot\nfound\r\n", "is text"),
    "XML error page": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML page"),
    "git-LFS pointer with carriage returns": (
        b"version https://git-lfs.github.com/spec/v1\r\noid sha256:00\r\nsize 1\r\n", "git lfs pull"),
    "real zip": (_zip(), "zip archive"),
    "torch.save": (_torch_pickle(new=True), "zip archive"),
    "torch.save of old": (_torch_pickle(new=False), "pickle"),
    "pickle, protocol 3": (pickle.dumps({"odd": "x" * 60}, 3), "pickle"),
    "pickle, protocol 5": (pickle.dumps({"odd": "x" * 60}, 5), "pickle"),
    "pickle, protocol 0": (pickle.dumps({"odd": "x" * 60}, 0), "text"),
    "gzip of a good file": (gzip.compress(GOOD), "gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(64), "zstd"),
    "xz": (b"\xfd7zXZ\0" + bytes(64), "xz"),
    "tar of a good file": (_tar(), "tar archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "NumPy": (_npy(), "NumPy"),
    "ELF": (b"\x7fELF\x02\x01\x01" + bytes(64), "not a safetensors file"),
    "zeros": (bytes(4096), "does not begin"),
    "bytes of 255": (b"\xff" * 4096, "not a safetensors file"),
    "GOOD twice": (GOOD + GOOD, "after its last tensor"),
    "a byte lost at the front": (GOOD[1:], "safetensors"),
    "a byte more at the front": (b"\0" + GOOD, "safetensors"),
    "length in the other byte order": (GOOD[:8][::-1] + GOOD[8:], "cut short"),
    "length one too small": (_changed(0, GOOD[0] - 1), "not valid JSON"),
    "length one too large": (_changed(0, GOOD[0] + 1), ""),
    "length takes all the file": (packed(b'{"odd":{%s}}' % FIELD, bytes(4), len(FIELD) + 14), "not valid JSON"),
    # JSON
    "header of one brace": (packed(b"{"), "not valid JSON"),
    "header of spaces": (packed(b"        "), "does not begin"),
    "header in UTF-16 with mark": (packed("{}".encode("utf-16")), "does not begin"),
    "Latin-1": (packed('{"é":1}'.encode("latin-1")), "not valid JSON"),
    "overlong UTF-8": (packed(b'{"\xc0\xaf":{%s}}' % FIELD, bytes(4)), "not valid JSON"),
    "surrogate in UTF-8": (packed(b'{"\xed\xa0\x80":{%s}}' % FIELD, bytes(4)), "not valid JSON"),
    "trailing garbage": (packed(b'{"odd":{%s}}x' % FIELD, bytes(4)), "not valid JSON"),
    "a vertical tab after the JSON": (packed(b'{"odd":{%s}}\v' % FIELD, bytes(4)), "not valid JSON"),
    "no-break space": (packed(b'{"odd":\xc2\xa0{%s}}' % FIELD, bytes(4)), "not valid JSON"),
    "key without quotes": (packed(b"{odd:{%s}}" % FIELD, bytes(4)), "not valid JSON"),
    "key null": (packed(b"{null:{%s}}" % FIELD, bytes(4)), "not valid JSON"),
    "bad escape": (packed(b'{"\\x61":{%s}}' % FIELD, bytes(4)), "not valid JSON"),
    "short escape": (packed(b'{"\\u61":{%s}}' % FIELD, bytes(4)), "not valid JSON"),
    "surrogates the wrong way round": (packed(b'{"\\ude00\\ud83d":{%s}}' % FIELD, bytes(4)), "surrogate"),
    "half a pair after a pair": (packed(b'{"\\ud83d\\ude00\\ud83d":{%s}}' % FIELD, bytes(4)), "ud83d is half"),
    "two halves with a backslash between": (packed(b'{"\\ud83d\\\\\\ude00":{%s}}' % FIELD, bytes(4)), "ud83d is half"),
    "half a pair twice": (packed(b'{"\\ud83d\\ude00\\ude00":{%s}}' % FIELD, bytes(4)), "ude00 is half"),
    "half a pair in capitals": (packed(b'{"\\uDFFF":{%s}}' % FIELD, bytes(4)), "uDFFF is half"),
    "NaN beside a tensor": (packed(_NAN, bytes(4)), "NaN"),
    "entries far too many": (packed(b'{"odd":[' + b"[]," * 1_600_000 + b"0]}"), "commas and brackets"),
    "lists nested 990 deep": (packed(b'{"odd":' + b"[" * 990 + b"]" * 990 + b"}"), ""),
    "objects nested 990 deep": (packed(b'{"odd":' * 990 + b"1" + b"}" * 990), ""),
    "duplicate by an escape in a field": (packed(b'{"odd":{"\\u0064type":"F64",%s}}' % FIELD, bytes(4)), "dtype"),
    "duplicate of a long name": (packed(b'{"%s":1,"%s":2}' % (b"n" * 4096, b"n" * 4096)), "stands there twice"),
    # entries
    "entry true": (packed({"odd": True}), "tensor odd"),
    "entry a string": (packed({"odd": "F32"}), "tensor odd"),
    "__metadata__ as a tensor": (packed({"__metadata__": entry()}, bytes(4)), "__metadata__"),
    "dtype with a space": (one(dtype="F32 "), "tensor odd has the unknown dtype"),
    "dtype with NUL": (one(dtype="F32\0"), "F32\\x00"),
    "dtype of torch": (one(dtype="torch.float32"), "torch.float32"),
    "dtype very long": (one(dtype="F" * 100_000), "FFF"),
    "shape 2**63": (one(shape=[2**63]), "tensor odd has a shape"),
    "shape of 4300 digits": (raw_one(shape=b"[%s]" % (b"9" * 4300)), "tensor odd has a shape"),
    "shape of 4301 digits": (raw_one(shape=b"[%s]" % (b"9" * 4301)), "4301 digits"),
    "offset of 10000 digits": (raw_one(offsets=b"[0,%s]" % (b"9" * 10_000)), "10000 digits"),
    "shape of many ones and a two": (one(shape=[1] * 1000 + [2]), "tensor odd takes 4 bytes"),
    "zero after an overflow": (one(b"", shape=[2**40, 2**40, 0], data_offsets=[0, 0]), "tensor odd has a shape"),
    "offsets -0.0": (raw_one(offsets=b"[-0.0,4]"), "tensor odd has data_offsets"),
    "offsets null inside": (one(data_offsets=[None, 4]), "tensor odd has data_offsets"),
    "offsets false": (one(data_offsets=[False, 4]), "tensor odd has data_offsets"),
    "offsets at 2**63": (one(data_offsets=[2**63, 2**63 + 4]), "tensor odd has data_offsets"),
    "offsets from the start of the file": (one(data_offsets=[8, 12]), "tensor odd leaves a hole"),
    "end before begin, the size of an empty tensor": (one(shape=[0], data_offsets=[4, 0]), "tensor odd takes -4"),
    "second tensor ends beyond the file": (packed({"a": entry(), "odd": entry(begin=4, end=8)}, bytes(6)), "cut short"),
    "second overlaps by a byte": (
        packed({"a": entry(), "odd": entry("U8", [4], 3, 7)}, bytes(7)), "tensor odd overlaps"),
    "hole of a byte": (packed({"a": entry(), "odd": entry("U8", [4], 5, 9)}, bytes(9)), "tensor odd leaves a hole"),
    "fault in the last of 2000 tensors": (
        packed({f"t{n}": entry("U8", [1], n, n + 1) for n in range(1999)} | {"odd": entry("U8", [2], 1999, 2000)},
               bytes(2000)), "tensor odd takes 1 bytes"),
    "fault in a name of 4 KB": (packed({"n" * 4096: entry(dtype="F31")}, bytes(4)), "n" * 4096),
    "fault in a name with a terminal escape": (packed({"\x1b[2J": entry(dtype="F31")}, bytes(4)), "\\x1b[2J"),
    "fault in a name of nothing": (packed({"": entry(dtype="F31")}, bytes(4)), "tensor  has the unknown dtype"),
    "fault in a name with NUL": (packed({"a\0b": entry(shape=[2])}, bytes(4)), "a\\x00b"),
    # a real file, cut
    **{f"cut after {kept} bytes": (_REAL[:kept], "") for kept in (4, 8, 9, 100, _HEADER_END - 1)},
    **{f"cut after {kept} bytes": (_REAL[:kept], "cut short") for kept in (_HEADER_END, _HEADER_END + 1,
                                                                           len(_REAL) - 1)},
}  # fmt: skip
FILES = MALFORMED | MORE_FILES

# --- checkpoints: name -> (what spoils a good one of two shards, words of the message) ---

Spoil = Callable[[Path], object]


def index_with(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(root: Path) -> None:
        index = json.loads((root / INDEX).read_text())
        change(index)
        (root / INDEX).write_text(json.dumps(index))

    return spoil


def shard_named(name: object) -> Spoil:
    return index_with(lambda index: index["weight_map"].update({f"{Q}.weight": name}))


def written(name: str, content: str | bytes) -> Spoil:
    return lambda root: (root / name).write_bytes(content.encode() if isinstance(content, str) else content)


def linked(name: str, target: str) -> Spoil:
    def spoil(root: Path) -> None:
        (root / name).unlink()
        (root / name).symlink_to(target)

    return spoil


def moved_out(name: str, *, absolute: bool) -> Spoil:
    def spoil(root: Path) -> None:
        outside = root.parent / "outside.safetensors"
        (root / name).rename(outside)
        (root / name).symlink_to(outside if absolute else Path("..") / outside.name)

    return spoil


def replaced(name: str, make: Spoil) -> Spoil:
    def spoil(root: Path) -> None:
        (root / name).unlink()
        make(root / name)

    return spoil


def without(*names: str) -> Spoil:
    def spoil(root: Path) -> None:
        for name in names:
            (root / name).unlink()

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(root: Path) -> None:
        for each in spoils:
            each(root)

    return spoil


def shard_with(name: str, tensors: Tensors) -> Spoil:
    return lambda root: save_file(dict(tensors), root / name)


INDEXES = {
    "empty": "", "a list": "[]", "null": "null", "cut": '{"weight_map": {', "no weight_map": "{}",
    "git-LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "HTML": "<!doctype html><html></html>", "nested deep": '{"weight_map":' + "[" * 200_000,
    "weight_map empty": '{"weight_map": {}}', "weight_map a list": '{"weight_map": []}',
    "weight_map null": '{"weight_map": null}', "weight_map a string": '{"weight_map": "x"}',
    "weight_map twice": '{"weight_map": {}, "weight_map": {}}',
    "tensor twice": f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}',
    "tensor twice by an escape": f'{{"weight_map": {{"a": "{FIRST}", "\\u0061": "{FIRST}"}}}}',
    "NaN": '{"metadata": {"total_size": NaN}, "weight_map": {}}', "byte order mark": "\ufeff{}",
    "half a surrogate pair": f'{{"weight_map": {{"\\ud800": "{FIRST}"}}}}',
    "far too many values": '{"weight_map": {"a": [' + "[]," * 1_600_000 + "0]}}",
}  # fmt: skip
_SHARDS: dict[str, object] = {
    "climbs": "../outside.safetensors", "climbs far": "../../../../etc/passwd", "below": "sub/x.safetensors",
    "absolute": "/etc/x.safetensors", "of Windows": "C:\\x.safetensors", "backslash": "..\\x.safetensors",
    "NUL": "a\0.safetensors", "newline": "a\n.safetensors", "terminal escape": "\x1b[2J.safetensors", "empty": "",
    "dot": ".", "two dots": "..", "long": "n" * 4096 + ".safetensors", "long enough": "n" * 300 + ".safetensors",
    "absent": "nowhere.safetensors", "pickle": "pytorch_model.bin", "config": CONFIG, "index": INDEX,
    "surrogate escape": "\udc80.safetensors",
}  # fmt: skip
_SHARD_VALUES: dict[str, object] = {"null": None, "number": 1, "true": True, "list": [FIRST], "object": {FIRST: 1}}
_MORE = {f"{Q}.weight": torch.zeros(8, 6), "more": torch.zeros(1)}
CHECKPOINTS: dict[str, tuple[Spoil, str]] = {
    **{f"index: {name}": (written(INDEX, text), INDEX) for name, text in INDEXES.items()},
    "index: pointer says what to do": (written(INDEX, INDEXES["git-LFS pointer"]), "git lfs pull"),
    "index: page says what to do": (written(INDEX, INDEXES["HTML"]), "download it again"),
    **{f"shard name: {name}": (shard_named(value), "") for name, value in _SHARDS.items()},
    **{f"shard name is {name}": (shard_named(value), "must map") for name, value in _SHARD_VALUES.items()},
    "shard missing": (without(SECOND), SECOND),
    "all shards missing": (without(FIRST, SECOND), FIRST),
    "shard not in the index": (shard_with("model-00003-of-00003.safetensors", _MORE), "model-00003-of-00003"),
    "shard of the index forgotten": (index_with(
        lambda index: [index["weight_map"].pop(name) for name, shard in list(index["weight_map"].items())
                       if shard == SECOND]), SECOND),
    "tensor in the index alone": (index_with(lambda index: index["weight_map"].update(extra=FIRST)), "extra"),
    "tensor in a shard alone": (index_with(lambda index: index["weight_map"].pop(f"{Q}.weight")), f"{Q}.weight"),
    "tensor in the other shard": (shard_named(SECOND), f"{Q}.weight"),
    "tensor in both shards": (lambda root: shutil.copy(root / FIRST, root / SECOND), SECOND),
    "shard empty": (written(SECOND, b""), SECOND),
    "shard is a pointer": (written(SECOND, INDEXES["git-LFS pointer"]), "git lfs pull"),
    "shard cut": (lambda root: os.truncate(root / SECOND, (root / SECOND).stat().st_size - 1), SECOND),
    "single beside sharded": (shard_with(SINGLE, BASE), "both"),
    "single beside shards without index": (both(without(INDEX), shard_with(SINGLE, BASE)), FIRST),
    "shards without index": (without(INDEX), "neither"),
    "pickles alone": (both(without(INDEX, FIRST, SECOND), written("pytorch_model.bin", b"\x80\x02}")), "pickle"),
    "nothing at all": (without(INDEX, FIRST, SECOND, CONFIG), "neither"),
    "an adapter": (both(without(INDEX, FIRST, SECOND), written(ADAPTER_CONFIG, "{}")), "is an adapter"),
    "link out": (moved_out(FIRST, absolute=False), "leads out of the checkpoint"),
    "link out, absolute": (moved_out(FIRST, absolute=True), "leads out of the checkpoint"),
    "link to nothing": (linked(FIRST, "nowhere"), FIRST),
    "link to itself": (linked(FIRST, FIRST), FIRST),
    "link to a device": (linked(FIRST, "/dev/zero"), FIRST),
    "index a link to nothing": (linked(INDEX, "nowhere"), INDEX),
    "single a link to nothing": (both(without(INDEX, FIRST, SECOND), lambda root: (root / SINGLE).symlink_to("blob")),
                                 f"{SINGLE} is missing"),
    **{f"{kind} for {name}": (replaced(name, make), f"{name} is not a regular file")
       for kind, make in {"FIFO": os.mkfifo, "directory": Path.mkdir}.items() for name in (FIRST, INDEX, CONFIG)},
    "FIFO among the assets": (lambda root: os.mkfifo(root / "pipe"), "pipe is not a regular file"),
    "asset a link to nothing": (lambda root: (root / "tokenizer.json").symlink_to("nowhere"), "tokenizer.json"),
    **{f"config: {name}": (written(CONFIG, text), CONFIG) for name, text in {
        "empty": "", "a list": "[]", "cut": "{", "key twice": '{"a":1,"a":2}', "NaN": '{"a":NaN}',
        "nested deep": '{"a":' + "[" * 200_000, "a page": "<html></html>", "not UTF-8": "\udcff",
    }.items() if name != "not UTF-8"},
    "config: not UTF-8": (written(CONFIG, b'{"a":"\xff"}'), CONFIG),
    "config: far too large": (lambda root: os.truncate(root / CONFIG, 100_000_001), CONFIG),
}  # fmt: skip
GOOD_FACTORS = dict(lora_factors(Q, (8, 6)))
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


class Ground:
    """A folder with a good base and a good adapter."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.base = write_checkpoint(folder / "base", BASE, shards=2)
        self.adapter = write_adapter(folder / "adapter", GOOD_FACTORS)


def with_lora(content: bytes) -> bytes:
    """A valid file of an oddity, with a tensor in front of the others that an adapter can be merged into."""
    length = struct.unpack("<Q", content[:8])[0]
    fields, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    target = bytes(8 * 6 * 4)
    for name, field in fields.items():
        if name != "__metadata__":
            field["data_offsets"] = [offset + len(target) for offset in field["data_offsets"]]
    return packed({f"{Q}.weight": entry("F32", [8, 6], 0, len(target))} | fields, target + data)


def write_index(root: Path, weight_map: dict[str, str]) -> None:
    (root / INDEX).write_text(json.dumps({"weight_map": weight_map}))
