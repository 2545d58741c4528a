"""The parser of GGUF: it has what gguf-py has of files that gguf-py wrote, and refuses by name what is damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_files import ARRAY, BOOL, F16, F32, Q8_0, STRING, U32, U64, field, info, packed, text
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.errors import InputError, UnsupportedError
from adaptertool.files.gguf import TYPES, read_gguf
from adaptertool.files.header import Header

ONE = {"a.weight": (F32, (2, 3), bytes(24))}


def read(path: Path, content: bytes) -> Header:
    path.write_bytes(content)
    return read_gguf(path)


def test_types_are_those_of_gguf_py() -> None:
    gguf = pytest.importorskip("gguf")
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert dict(TYPES) == theirs


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_what_gguf_py_wrote(tmp_path: Path, alignment: int) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(alignment)
    writer.add_array("tokenizer.ggml.tokens", ["a", "", "é" * 300])
    writer.add_array("odd.numbers", [1, 2, 3])
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"odd.{kind}", 3)
    writer.add_float32("odd.float32", 0.25)
    writer.add_float64("odd.float64", 0.1)
    writer.add_bool("odd.bool", True)
    rng = np.random.default_rng(0)
    for number, dtype in enumerate((np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64)):
        writer.add_tensor(f"plain.{number}", rng.normal(size=(3, 5)).astype(dtype))
    q8 = gguf.quants.quantize(rng.normal(size=(2, 3, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q4", np.zeros((5, 144), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.add_tensor("bf16", np.zeros((7, 6), np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    header, theirs = read_gguf(tmp_path / "a.gguf"), gguf.GGUFReader(tmp_path / "a.gguf")
    assert list(header.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        ref = header.tensors[tensor.name]
        assert (ref.offset, ref.spec.nbytes, ref.spec.dtype) == (
            tensor.data_offset, tensor.n_bytes, tensor.tensor_type.name
        )  # fmt: skip
        assert list(ref.shape) == tensor.shape.tolist()[::-1]
    assert header.tensors["q8"].shape == (2, 3, 64) and header.tensors["bf16"].shape == (7, 3)
    for key, value in header.fields.items():
        if isinstance(value, str | int | float):
            assert theirs.fields[key].contents() == value
    assert header.fields["tokenizer.ggml.tokens"].length == 3
    assert header.data_start == theirs.data_offset and not header.data_start % alignment


DAMAGED = {
    "magic alone": (b"GGUF", "cut short"),
    "half a magic": (b"GGU", "cut short"),
    "version 1": (packed(ONE, version=1), "version 1; versions 2 and 3"),
    "version 4": (packed(ONE, version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensors beyond the file": (packed(ONE, counts=(2**63, 0)), "claims 9,223,372,036,854,775,808 tensors"),
    "fields beyond the file": (packed(ONE, counts=(1, 2**40)), "claims 1,099,511,627,776 fields"),
    "a tensor too many": (packed(ONE, counts=(2, 0)), "tensor 1 has no name"),
    "key of another length": (packed(ONE, [struct.pack("<Q", 2**62)]), "the key of field 0 has"),
    "key twice": (packed(ONE, [field("odd", 1), field("odd", 2)]), "field odd twice"),
    "key not UTF-8": (packed(ONE, [field(b"\xff", 1)]), "no UTF-8"),
    "text not UTF-8": (packed(ONE, [field("odd", text(b"\xff"), STRING)]), "field odd is no UTF-8"),
    "text beyond the file": (packed(ONE, [field("odd", struct.pack("<Q", 999), STRING)]), "cut short: field odd"),
    "type not known": (packed(ONE, [field("odd", b"", 13)]), "field odd has the type 13"),
    "bool of 2": (packed(ONE, [field("odd", b"\2", BOOL)]), "field odd is 2"),
    "list of lists": (packed(ONE, [field("odd", struct.pack("<IQ", ARRAY, 1), ARRAY)]), "list of the type 9"),
    "long list": (packed(ONE, [field("odd", struct.pack("<IQ", U64, 2**60), ARRAY)]), "cut short: field odd"),
    "long list of texts": (packed(ONE, [field("odd", struct.pack("<IQ", STRING, 2**60), ARRAY)]), "claims .* texts"),
    "split": (packed(ONE, [field("split.count", struct.pack("<H", 3), 2)]), "one of 3 files"),
    "alignment 0": (packed(ONE, [field("general.alignment", 0)]), "power of two"),
    "alignment 48": (packed(ONE, [field("general.alignment", 48)]), "power of two"),
    "alignment a text": (packed(ONE, [field("general.alignment", "32")]), "power of two"),
    "long name": (packed({"a" * 65: (F32, (1,), bytes(4))}), "65 bytes; at most 64"),
    "tensor of no known type": (packed({"odd": (99, (1,), bytes(4))}), "tensor odd has the type 99"),
    "five dimensions": (packed({"odd": (F32, (1,) * 5, bytes(4))}), "5 dimensions"),
    "half a block": (packed({"odd": (Q8_0, (2, 33), bytes(68))}), "in blocks of 32"),
    "shape beyond": (packed({"odd": (F32, (2**40, 2**40), b"")}), "beyond what a file can hold"),
    "shape that is a little too large": (packed({"odd": (F32, (100,), bytes(4))}), "cut short: "),
    "bytes at the end": (packed(ONE) + bytes(33), "bytes after its last tensor"),
    "no padding after the header": (packed(ONE)[:-40], "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, match = DAMAGED[name]
    with pytest.raises(InputError, match=match):
        read(tmp_path / "odd.gguf", content)


@pytest.mark.parametrize("names", [("a", "a"), ("a", "b")])
@pytest.mark.parametrize("offset", [0, 4, 64])
def test_tensors_lie_one_after_another(tmp_path: Path, names: tuple[str, str], offset: int) -> None:
    """Two tensors, of which the second should begin at byte 32."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + info(names[0], F32, (1,), 0) + info(names[1], F32, (1,), offset)
    content = head + bytes(-len(head) % 32) + bytes(128)
    with pytest.raises(InputError, match="twice" if names == ("a", "a") else f"begins at byte {offset} .* not at 32"):
        read(tmp_path / "odd.gguf", content)


def test_what_may_be_odd(tmp_path: Path) -> None:
    """No tensors, none of a size, the last without its padding, version 2, a scalar."""
    assert not read(tmp_path / "a.gguf", packed({}, [field("odd", 1)])).tensors
    assert read(tmp_path / "a.gguf", packed({"a": (F32, (0, 3), b"")})).tensors["a"].shape == (0, 3)
    assert read(tmp_path / "a.gguf", packed({"a": (F32, (), bytes(4))})).tensors["a"].shape == ()
    two = packed({"a": (F16, (3,), bytes(6)), "b": (F16, (3,), bytes(6))}, version=2)
    assert list(read(tmp_path / "a.gguf", two[:-26]).tensors) == ["a", "b"]


VALID = packed(
    {"a.weight": (F32, (2, 3), bytes(24)), "q": (Q8_0, (1, 32), bytes(34)), "b": (F16, (5,), bytes(10))},
    [field("general.architecture", "llama"), field("n", 3), field("l", struct.pack("<IQ", U32, 2) + bytes(8), ARRAY)],
)


@given(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=9))
def test_any_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    try:
        header = read(path, VALID[:place] + content + VALID[place + len(content) :])
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert all(ref.offset + ref.spec.nbytes <= header.size for ref in header.tensors.values())


@pytest.mark.parametrize("length", range(0, len(VALID) - 40, 7))
def test_cut_short(tmp_path: Path, length: int) -> None:
    with pytest.raises(InputError, match=r"cut short|claims"):
        read(tmp_path / "cut.gguf", VALID[:length])


def test_a_header_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptertool.files.gguf.MAX_HEADER_BYTES", 1000)
    content = packed({}, [field("odd", struct.pack("<IQ", U64, 200) + bytes(1600), ARRAY)])
    with pytest.raises(InputError, match=r"header beyond 1,000 bytes \(field odd\)"):
        read(tmp_path / "long.gguf", content)
    with pytest.raises(UnsupportedError, match="version 7"):
        read(tmp_path / "long.gguf", packed({}, version=7))
