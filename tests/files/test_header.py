"""The header reader: what is malformed is refused by name, what is odd but valid passes, and it never accepts
what the reference reader refuses."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from headers import FIELD, GOOD, MALFORMED, VALID, Entry, entry, one, packed, raw_one
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from long_tests import share
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save as save_numpy
from safetensors.torch import save as save_torch

from adaptertool.errors import InputError, StorageError
from adaptertool.files import entries, jsonfile
from adaptertool.files.header import MAX_HEADER_BYTES, read_header
from adaptertool.files.jsonfile import load_json, parse_json
from adaptertool.spec.tensors import DTYPE_BITS


def refusal(path: Path, kind: type[Exception] = InputError) -> str:
    """The message with which `path` is refused; it names the file and holds nothing that acts on a terminal."""
    with pytest.raises(kind) as caught:
        read_header(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    return message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_by_name(file: Path, case: str) -> None:
    content, part = MALFORMED[case]
    file.write_bytes(content)
    assert part in refusal(file).replace(str(file), "")


@pytest.mark.parametrize("kept", range(0, len(GOOD), 7))
def test_a_file_cut_anywhere_is_refused(file: Path, kept: int) -> None:
    file.write_bytes(GOOD[:kept])
    refusal(file)


def test_header_beyond_the_limit_is_refused_unread(file: Path) -> None:
    file.write_bytes(packed({}, length=MAX_HEADER_BYTES + 1))
    os.truncate(file, MAX_HEADER_BYTES + 9)  # sparse
    assert "at most" in refusal(file)


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "dangling link", "absent", "link to itself"])
def test_what_is_no_regular_file_is_refused(file: Path, kind: str) -> None:
    {
        "fifo": lambda: os.mkfifo(file),  # must not hang
        "directory": file.mkdir,
        "device": lambda: file.symlink_to("/dev/null"),
        "dangling link": lambda: file.symlink_to("nowhere"),
        "absent": lambda: None,
        "link to itself": lambda: file.symlink_to(file),
    }[kind]()
    refusal(file)


def test_name_too_long_for_the_system_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / ("x" * 300 + ".safetensors"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_is_a_storage_error(file: Path) -> None:
    file.write_bytes(GOOD)
    file.chmod(0)
    assert "ermission" in refusal(file, StorageError)


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "a\nb", "a\0b", "\x9b2J", "\u202egnp", "\u2028", "../../etc", "", "\x7f"]
)
@pytest.mark.parametrize("fault", [{"dtype": "F31"}, {"shape": [2]}, {"extra": 1}, {"data_offsets": [4, 8]}], ids=str)
def test_messages_hold_no_raw_control_characters(file: Path, name: str, fault: Entry) -> None:
    file.write_bytes(packed({name: entry() | fault}, bytes(4)))
    refusal(file)


@pytest.mark.parametrize("text", [b'"\\u001b[31m"', b'["\\u001b"]', b'{"\\u001b":"\\u202e"}'])
def test_messages_hold_no_control_characters_of_values(file: Path, text: bytes) -> None:
    file.write_bytes(raw_one(dtype=text))
    refusal(file)


def test_messages_escape_the_path_too(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m.safetensors"  # an index may name its shards so
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert str(caught.value).isprintable()


def listed(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (ref.spec.dtype, ref.spec.shape) for name, ref in read_header(path).tensors.items()}


def reference(content: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (info["dtype"], tuple(info["shape"])) for name, info in deserialize(content)}


@pytest.mark.parametrize("case", VALID)
def test_valid_oddities_pass_and_agree_with_the_reference(file: Path, case: str) -> None:
    content = VALID[case]
    file.write_bytes(content)
    assert listed(file) == reference(content)


def test_header_of_a_size_that_begins_like_a_zip_passes(file: Path) -> None:
    length = int.from_bytes(b"PK\x03\x04", "little")
    with file.open("wb") as out:
        out.write(struct.pack("<Q", length) + (b'{"odd":{%s}}' % FIELD).ljust(length) + bytes(4))
    assert listed(file) == {"odd": ("F32", (1,))}


def test_every_dtype_of_the_reference_is_known(file: Path) -> None:
    file.write_bytes(one(dtype="F31"))
    with pytest.raises(SafetensorError, match="expected one of") as caught, safe_open(file, "np"):
        pass
    named = str(caught.value).split("expected one of")[1].split("`")[1::2]
    assert set(named) == set(DTYPE_BITS)


def test_metadata_null_is_none(file: Path) -> None:
    """MLX writes that."""
    file.write_bytes(packed({"__metadata__": None, "a": entry("U8", [4], end=4)}, b"aaaa"))
    with safe_open(file, "np") as reference:
        assert reference.metadata() is None
    assert read_header(file).metadata == {}
    assert list(read_header(file).tensors) == ["a"]


def test_header_gives_order_offsets_and_metadata(file: Path) -> None:
    head = {"b": entry(begin=4, end=8), "__metadata__": {"k": "v"}, "a": entry("U8", [4])}
    content = packed(head, b"aaaabbbb")
    file.write_bytes(content)
    header = read_header(file)
    assert list(header.tensors) == ["a", "b"]  # by offset
    assert header.metadata == {"k": "v"}
    assert (header.size, header.data_start) == (len(content), len(content) - 8)
    for name, ref in header.tensors.items():
        assert content[ref.offset : ref.offset + ref.spec.nbytes] == name.encode() * 4


# Texts at which JSON readers differ; put into a header they find the places where ours is too lax.
FRAGMENTS = st.sampled_from(
    [
        b"-0", b"1.0", b"1e0", b"0", b"00", b"9" * 20, b"true", b"null", b"NaN", b"[]", b"{}", b"[0,0]", b" ", b"\n",
        b"\0", b"\\ud800", b"\\u0061", b"\\u0000", b"\\x", b"\xff", b"\xc3\xa9", b'"', b",", b":", b"\\", b"\x7f",
        b'"__metadata__"', b'"F4"', b'"x":1,', b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},',
    ]
)  # fmt: skip
NUMPY_DTYPES = ["bool", "u1", "i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
TORCH_DTYPES = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.int64, torch.bool]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SHAPES = st.lists(st.integers(0, 3), max_size=3)
# Not empty: with no tensors and empty metadata the reference writes a header that nobody can read.
METADATA = st.none() | st.dictionaries(NAMES, NAMES, min_size=1, max_size=2)


@st.composite
def valid_files(draw: st.DrawFn) -> bytes:
    """What the two reference writers write."""
    if draw(st.booleans()):
        arrays = draw(st.dictionaries(NAMES, st.tuples(st.sampled_from(NUMPY_DTYPES), SHAPES), max_size=4))
        return save_numpy({k: np.zeros(shape, dtype) for k, (dtype, shape) in arrays.items()}, draw(METADATA))
    tensors = draw(st.dictionaries(NAMES, st.tuples(st.sampled_from(TORCH_DTYPES), SHAPES), max_size=4))
    return save_torch({k: torch.zeros(shape).to(dtype) for k, (dtype, shape) in tensors.items()}, draw(METADATA))


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """A valid file with bytes of its header replaced, put in or taken out; its length mostly made to fit again."""
    content = draw(valid_files())
    length = int.from_bytes(content[:8], "little")
    header, data = bytearray(content[8 : 8 + length].rstrip()), content[8 + length :]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(header)))
        header[at : at + draw(st.integers(0, 3))] = draw(FRAGMENTS | st.binary(max_size=2))
    claimed = len(header) if draw(st.integers(0, 9)) else draw(st.integers(0, 2 * len(header)))
    return packed(bytes(header), data, claimed)


@st.composite
def assembled_files(draw: st.DrawFn) -> bytes:
    """A header put together from tokens that are each nearly right: more of these reach the checks behind the JSON."""
    numbers = st.sampled_from(
        [b"0", b"1", b"2", b"4", b"-0", b"-1", b"1.0", b"1e0", b"01", b"true", b"18446744073709551616"]
    )
    dtypes = st.sampled_from([b'"U8"', b'"F32"', b'"F4"', b'"\\u0055\\u0038"', b'"u8"', b"null"])
    names = st.sampled_from(
        [b'"a"', b'"b"', b'"\\u0061"', b'"\\ud800"', b'"\\udc00"', b'"\\ud83d\\ude00"', b'"__metadata__"']
    )
    entries = []
    for _ in range(draw(st.integers(0, 2))):
        shape = b",".join(draw(st.lists(numbers, max_size=2)))
        offsets = b",".join(draw(st.lists(numbers, min_size=2, max_size=2)))
        fields = b'"dtype":%s,"shape":[%s],"data_offsets":[%s]' % (draw(dtypes), shape, offsets)
        entries.append(b"%s:{%s}" % (draw(names), fields))
    if draw(st.booleans()):
        entries.append(b'"__metadata__":{%s:%s}' % (draw(names), draw(names)))
    return packed(b"{%s}" % b",".join(entries), bytes(draw(st.integers(0, 4))))


def agree(folder: Path, content: bytes) -> None:
    """What we accept the reference accepts, with the same names, dtypes and shapes."""
    path = folder / "any.safetensors"
    path.write_bytes(content)
    try:
        ours = listed(path)
    except InputError as error:
        assert str(path) in str(error)
        assert str(error).isprintable()
        return
    assert ours == reference(content)  # raises where the reference refuses
    with safe_open(path, "np") as opened:
        assert set(opened.keys()) == set(ours)


UNLIMITED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@settings(UNLIMITED, max_examples=150)
@given(content=valid_files())
def test_everything_the_reference_writes_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(content)
    assert listed(path) == reference(content)


@settings(UNLIMITED, max_examples=share(600))
@given(content=mutated_files())
def test_never_laxer_than_the_reference_on_mutated_files(tmp_path: Path, content: bytes) -> None:
    agree(tmp_path, content)


@settings(UNLIMITED, max_examples=share(600))
@given(content=assembled_files())
def test_never_laxer_than_the_reference_on_assembled_headers(tmp_path: Path, content: bytes) -> None:
    agree(tmp_path, content)


def said(content: bytes) -> object:
    """What is read of the header of a file, or the message with which that is refused."""
    try:
        return entries.read_entries(Path("any"), 8, content[8 : 8 + int.from_bytes(content[:8], "little")])
    except InputError as error:
        return str(error)


def as_json(content: bytes) -> object:
    """The same, where no header is read in the way of the usual ones."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(entries, "_usual", lambda *_: None)
        return said(content)


@settings(UNLIMITED, max_examples=share(1500))
@example(packed(b'0"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}') + b"xx", b"")
@given(content=st.one_of(valid_files(), mutated_files(), assembled_files()), space=st.sampled_from([b" ", b"  ", b""]))
def test_usual_headers_are_read_as_their_json_says(content: bytes, space: bytes) -> None:
    length = int.from_bytes(content[:8], "little")
    spread = content[8 : 8 + length].replace(b'":', b'":' + space).replace(b",", b"," + space)
    for one_of_both in (content, packed(spread)):
        assert said(one_of_both) == as_json(one_of_both)


@pytest.mark.parametrize("case", [*MALFORMED, *VALID])
def test_odd_headers_are_read_as_their_json_says(case: str) -> None:
    content = MALFORMED[case][0] if case in MALFORMED else VALID[case]
    if len(content) > 8 and content[8:9] == b"{":
        assert said(content) == as_json(content)


# By the byte: as usual, and with one thing other than that
USUAL = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
USUAL += b'"b, }":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]},'
USUAL += b'"c":{"dtype":"U8","shape":[],"data_offsets":[16,17]}}  '
OTHER = [
    (b'"b, }"', b'"a"'), (b'"b, }"', b'"__metadata__"'), (b'"b, }"', b'"\\u0061"'), (b'"b, }"', b'"\t"'),
    (b"[8,16]", b"[8,15]"), (b"[8,16]", b"[08,16]"), (b"[8,16]", b"[0,8]"), (b"[8,16]", b"[16,8]"),
    (b"[8,16]", b"[8,16,17]"), (b"[8,16]", b"[8,16.0]"), (b"[8,16]", b"[9223372036854775808,9223372036854775816]"),
    (b"[2,1]", b"[2,true]"), (b"[2,1]", b"[2,1.0]"), (b"[2,1]", b"[2,01]"), (b"[2,1]", b"[2]"), (b"[2,1]", b"[[2,1]]"),
    (b'"U8"', b'"U9"'), (b'"U8"', b'"U8","dtype":"U8"'), (b'"U8"', b'"U8","x":1'), (b'"U8"', b'8'),
    (b'"dtype":"U8"', b'"data_offsets":0'), (b'"dtype":"U8"', b'"dtype":"U8"},"d":{"dtype":"U8"'), (b'"U8"', b'"\xff"'),
    (b"]},", b"]}}"), (b"]},", b"]},,"), (b"}}  ", b"},  "), (b"}}  ", b"}} x"), (b"}}  ", b"}}}"), (b"}}  ", b"}"),
    (b'{"format":"pt"}', b'{"format":"pt","format":"pt"}'), (b'{"format":"pt"}', b'{"format":1}'),
    (b'{"format":"pt"}', b"null"), (b'{"format":"pt"},', b'{"format":"pt"}'), (b'{"format":"pt"}', b'{"a":"{}"}'),
]  # fmt: skip


@pytest.mark.parametrize(("part", "other"), [(b"", b""), *OTHER], ids=str)
def test_a_header_that_is_not_quite_usual_is_read_as_its_json_says(part: bytes, other: bytes) -> None:
    content = packed(USUAL.replace(part, other, 1) if part else USUAL)
    assert part in USUAL
    assert said(content) == as_json(content)


def test_of_a_usual_header_each_form_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = list[bytes]()
    real = entries.parse_json
    monkeypatch.setattr(entries, "parse_json", lambda text, what: parsed.append(text) or real(text, what))
    said(packed(USUAL))
    form = b'{"dtype":"%s","shape":[%s],"data_offsets":[0,%d]}'
    assert parsed == [b'{"format":"pt"}', form % (b"F32", b"2,1", 8), form % (b"U8", b"", 1)]


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b'"a"', b"1", b"{", b"{}x", b'{"a":1,"a":2}', b'{"b":{"a":1,"\\u0061":2}}', b'{"a":NaN}',
     b'{"a":-Infinity}', b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b'{"a":' + b"9" * 5000 + b"}", b"[" * 100_000,
     b'{"a":"\n"}', b'{"\\u001b[31m":1,"\\u001b[31m":2}'],
    ids=lambda text: repr(text[:24]),
)  # fmt: skip
def test_json_is_read_strictly(text: bytes) -> None:
    with pytest.raises(InputError, match=r"^thing") as caught:
        parse_json(text, "thing")
    assert str(caught.value).isprintable()


def test_json_passes_its_values(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "\u20ac"], "b": {"a": {}}}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert load_json(tmp_path / "x.json") == value


def test_json_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.touch()
    os.truncate(path, jsonfile.MAX_JSON_BYTES + 1)
    with pytest.raises(InputError, match=r"x\.json"):
        load_json(path)


def test_json_from_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(InputError, match=r"x\.json is not a regular file"):
        load_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    "part",
    ['"a":{', '{"a":', '"a":{"dtype":"F32","shape":[', '"a', '"', '"a":{}', '"a":{"b', '],"data_offsets":[0,', " "],
)
def test_the_time_for_a_malformed_header_grows_with_its_length(part: str) -> None:
    """Some 0.1 s; where each part is searched up to the end of the header, minutes."""
    content = packed(b"{" + part.encode() * 100_000)
    began = time.process_time()
    with pytest.raises(InputError):
        entries.read_entries(Path("any"), 8, content[8:])
    assert time.process_time() - began < 10
