"""What every codec promises, over CODECS; and that a new one is a file and a line: FP8, written here."""

from __future__ import annotations

import ast
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, write_adapter, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from long_tests import ALL, share
from safetensors.torch import load_file

import adaptertool
from adaptertool import codecs
from adaptertool.codecs import BY_DTYPE, CODECS, COMPUTED, Codec
from adaptertool.codecs.numbers import doubles, largest_stored, rounded, same_bits
from adaptertool.codecs.tensors import byte_of, held_as, read_rows, read_stored
from adaptertool.files.header import read_header
from adaptertool.files.reader import Inputs
from adaptertool.numerics.ulps import ulps
from adaptertool.spec.tensors import DTYPE_BITS

each = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
narrower = pytest.mark.parametrize("codec", [one for one in CODECS if one.rounds], ids=lambda codec: codec.name)
Array = Any


def words_of(codec: Codec) -> Array:
    """All that can be stored; of wide dtypes the ends, every power of two with its neighbours, and a sample."""
    bits = 8 * codec.word.itemsize
    if bits <= 16:
        return np.arange(1 << bits).astype(codec.word)
    some = [int(word) for word in np.random.default_rng(0).integers(0, 1 << bits, 4096, np.uint64)]
    powers = [exponent << codec.digits - 1 for exponent in range(1 << bits - codec.digits)]
    ends = [power + more for power in powers for more in (-1, 0, 1) if power + more >= 0]
    signed = [word | sign for word in ends for sign in (0, 1 << bits - 1)]
    return np.array([word & (1 << bits) - 1 for word in some + signed], codec.word)


def exactly(codec: Codec, word: int) -> Fraction | None:
    """The number that these bits are: a sign, an exponent, and the digits after the first. None: no finite one."""
    bits, after = 8 * codec.word.itemsize, codec.digits - 1
    sign, magnitude = -1 if word >> bits - 1 else 1, word & (1 << bits - 1) - 1
    exponent, digits = magnitude >> after, magnitude & (1 << after) - 1
    value = (digits + (1 << after if exponent else 0)) * Fraction(2) ** (max(exponent, 1) - 1 + codec.lowest - after)
    return sign * value if value <= codec.largest else None


def nearest(codec: Codec, value: Fraction) -> Fraction | None:
    """To nearest, ties to even; None beyond the range."""
    if not value:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > abs(value)
    step = Fraction(2) ** (max(exponent, codec.lowest) + 1 - codec.digits)
    found = round(value / step) * step  # a Fraction rounds half to even
    return found if abs(found) <= codec.largest else None


def require_nearest(codec: Codec, values: Array) -> None:
    stored = rounded(values, codec.name)
    for value, word in zip(values.tolist(), codec.words(stored).tolist(), strict=True):
        assert exactly(codec, word) == nearest(codec, Fraction(value)), value
        assert word >> 8 * codec.word.itemsize - 1 == (math.copysign(1, value) < 0)


@each
def test_decode_is_exact(codec: Codec) -> None:
    words = words_of(codec)
    stored = words.view(codec.held)
    numbers = np.empty(len(words), codec.wide)
    largest = codec.decode(stored, numbers)
    assert not math.isfinite(largest)
    assert np.array_equal(doubles(stored, codec.name), numbers, equal_nan=True)
    exact = [exactly(codec, int(word)) for word in words]
    for word, value, number in zip(words.tolist(), exact, numbers.tolist(), strict=True):
        assert not math.isfinite(number) if value is None else Fraction(number) == value, hex(word)
        if value == 0:
            assert (math.copysign(1, number) < 0) == (word != 0)
    finite = np.array([value is not None for value in exact])
    assert codec.decode(np.ascontiguousarray(stored[finite]), np.empty(finite.sum())) == codec.largest
    assert largest_stored(stored[finite], codec.name) == codec.largest


@narrower
def test_infinity_is_beyond_the_largest(codec: Codec) -> None:
    """Its bits come after those of the largest number, and those of NaN after it."""
    top = codec.words(rounded(np.array([codec.largest]), codec.name))
    above = (top + codec.word.type(1)).view(codec.held), (top + codec.word.type(2)).view(codec.held)
    assert doubles(above[0], codec.name).tolist() == [math.inf]
    assert np.isnan(doubles(above[1], codec.name)).all()


@each
def test_what_is_stored_comes_back(codec: Codec) -> None:
    stored = words_of(codec).view(codec.held)
    numbers = doubles(stored, codec.name)
    again = rounded(numbers, codec.name)
    assert (same_bits(stored, again) | np.isnan(numbers)).all()
    assert np.isnan(doubles(again[np.isnan(numbers)], codec.name)).all()


@narrower
def test_encode_goes_to_even_from_the_middle(codec: Codec) -> None:
    """The middles of neighbours, which float64 has; and the float64 just beside them, which keep their side."""
    finite = doubles(words_of(codec).view(codec.held), codec.name)
    finite = finite[np.isfinite(finite)][:: 7 if ALL else 41]  # an odd step: even and odd ones in turn
    half = codec.spacing(finite) / 2
    middles = finite + np.copysign(half, finite)
    assert (abs(middles - finite) == half).all()
    for values in (middles, np.nextafter(middles, math.inf), np.nextafter(middles, -math.inf)):
        require_nearest(codec, values)


@each
@settings(max_examples=share(300), deadline=None)
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_encode_is_the_nearest(codec: Codec, values: list[float]) -> None:
    require_nearest(codec, np.array(values))


@narrower
@pytest.mark.parametrize("quick", [False, True])
def test_encode_tells_what_is_open(codec: Codec, quick: bool) -> None:
    """Where an error leaves two results; what is not open is right for each value within the error."""
    values = np.random.default_rng(1).standard_normal(4096) * 2.0 ** np.arange(4096 // 128).repeat(128)
    values = values[abs(values) < codec.largest / 2]
    error, relative = 1e-4, 2.0 ** -(codec.digits + 4)
    out = np.empty(len(values), codec.held)
    left = codec.encode(values, error, relative, out, quick=quick)
    reach = error + relative * abs(values)
    ends = rounded(values - reach, codec.name), rounded(values + reach, codec.name)
    differ = np.flatnonzero(~same_bits(*ends))
    assert len(values) > len(differ) > 0
    assert set(differ) <= set(left) if quick else left.tolist() == differ.tolist()
    closed = np.setdiff1d(np.arange(len(values)), left)
    assert same_bits(out[closed], ends[1][closed]).all()


@each
def test_spacing_is_the_distance_to_the_next(codec: Codec) -> None:
    half = 1 << 8 * codec.word.itemsize - 1
    words = np.array([w for w in map(int, words_of(codec)) if w < half - 1], codec.word)
    here, there = (doubles(some.view(codec.held), codec.name) for some in (words, words + codec.word.type(1)))
    finite = np.isfinite(here) & np.isfinite(there)
    steps = codec.spacing(here[finite])
    assert (steps == there[finite] - here[finite]).all()
    assert (codec.spacing(-here[finite]) == steps).all()
    assert (ulps(words, words + codec.word.type(1)) == 1).all()
    assert codec.spacing(np.zeros(1)) == steps.min() == codec.smallest
    assert codec.spacing(np.array([codec.largest])) == 2.0 ** (math.frexp(codec.largest)[1] - codec.digits)
    assert codec.spacing(np.array([1.0])) == 2 * codec.roundoff


@each
def test_rows_cover_every_byte_once(codec: Codec, tmp_path: Path) -> None:
    """However the rows are cut; and what is read of them one after the other is the tensor."""
    rows, columns = 7, 5
    numbers = np.random.default_rng(2).standard_normal((rows, columns))
    stored = rounded(numbers, codec.name)
    names = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
    data = torch.frombuffer(bytearray(stored.tobytes()), dtype=names[codec.name]).reshape(rows, columns)
    root = write_checkpoint(tmp_path / "base", {"a": torch.ones(3), "x": data})
    header = read_header(root / "model.safetensors")
    ref = header.tensors["x"]
    assert DTYPE_BITS[codec.name] == 8 * codec.held.itemsize == 8 * held_as(codec.name).itemsize
    with Inputs({header.path: header.stamp}) as inputs:
        for step in range(1, rows + 1):
            cuts = [(first, min(rows, first + step)) for first in range(0, rows, step)]
            places = [tuple(byte_of(ref.offset, codec.name, row * columns) for row in cut) for cut in cuts]
            covered = [byte for begin, end in places for byte in range(begin, end)]
            assert covered == list(range(ref.offset, ref.offset + ref.spec.nbytes))
            parts = [read_stored(inputs, ref, first * columns, last * columns) for first, last in cuts]
            assert np.concatenate(parts).tobytes() == stored.tobytes()
            read = [read_rows(inputs, ref, first, last, columns) for first, last in cuts]
            assert np.concatenate(read).tobytes() == doubles(stored, codec.name).tobytes()


def test_names_are_dtypes_of_safetensors() -> None:
    assert tuple(COMPUTED) == tuple(codec.name for codec in CODECS)
    assert set(COMPUTED) <= DTYPE_BITS.keys()
    assert len(COMPUTED) == len(CODECS)


@pytest.mark.parametrize(("dtype", "item"), [("I64", 8), ("BOOL", 1), ("C64", 8), ("F8_E5M2", 1), ("F4", 1)])
def test_other_dtypes_are_bytes(dtype: str, item: int) -> None:
    assert dtype not in COMPUTED
    assert held_as(dtype) == np.dtype(f"u{item}")


def test_only_codecs_know_how_numbers_are_stored() -> None:
    """All others ask them: of numerics.rounding they have what belongs to no dtype."""
    open_to_all = {"Array", "to_odd", "standard_arithmetic"}
    for path in (ROOT / "adaptertool").rglob("*.py"):
        if path.parent.name in ("numerics", "codecs"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "adaptertool.numerics.rounding":
                assert {alias.name for alias in node.names} <= open_to_all, path


# F8_E4M3: largest 448, no infinity, NaN where all bits but the sign are set. With tables, as slow as may be.
_NUMBERS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float64).numpy()
_FINITE = _NUMBERS[:127]  # of the words 0 .. 0x7E


def _decode(stored: Array, out: Array) -> float:
    out[:] = _NUMBERS[stored]
    return float(abs(out).max(initial=0.0))


def _word(value: float) -> int:
    sign, size = 0x80 * (math.copysign(1, value) < 0), abs(value)
    if not size < 464:  # the middle between 448 and what would be the next
        return sign | (0x7E if size == 464 else 0x7F)
    at = int(np.searchsorted(_FINITE, size))
    if at < len(_FINITE) and _FINITE[at] == size:
        return sign | at
    if at == len(_FINITE):
        return sign | 0x7E
    low, high = Fraction(size) - Fraction(_FINITE[at - 1]), Fraction(_FINITE[at]) - Fraction(size)
    return sign | (at - 1 if low < high or (low == high and at % 2) else at)


def _encode(values: Array, error: float, relative: float, out: Array, *, quick: bool = False) -> Array:
    assert isinstance(quick, bool)
    reach = error + relative * abs(values)
    out[:] = [_word(value) for value in (values - reach).tolist()]
    upper = np.array([_word(value) for value in (values + reach).tolist()], np.uint8)
    return np.flatnonzero(out != upper)


FP8 = Codec(
    name="F8_E4M3", held=np.dtype(np.uint8), digits=4, lowest=-6, largest=448.0, decode=_decode, encode=_encode
)  # fmt: skip


def test_a_codec_is_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the table of codecs is told of FP8: a merge is correctly rounded, and verify and diff read it."""
    random = torch.Generator().manual_seed(3)
    base = (8 * torch.randn((24, 16), generator=random)).to(torch.float8_e4m3fn)
    a, b = torch.randn((4, 16), generator=random), torch.randn((24, 4), generator=random)
    root = write_checkpoint(tmp_path / "base", {"q.weight": base, "n.weight": torch.ones(3)})
    lora = write_adapter(tmp_path / "lora", {"q.lora_A.weight": a, "q.lora_B.weight": b}, r=4, lora_alpha=2)
    with pytest.raises(adaptertool.AdapterToolError, match="F8_E4M3"):
        adaptertool.merge(root, [lora], tmp_path / "refused")

    monkeypatch.setattr(codecs, "CODECS", (*CODECS, FP8))
    monkeypatch.setitem(BY_DTYPE, FP8.name, FP8)
    adaptertool.merge(root, [lora], tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")["q.weight"]
    assert merged.dtype == torch.float8_e4m3fn
    left, right = ([[Fraction(x) for x in row] for row in m.tolist()] for m in (b, a.T))
    for row, weights, stored in zip(left, base.double().tolist(), merged.view(torch.uint8).tolist(), strict=True):
        for column, weight, word in zip(right, weights, stored, strict=True):
            value = Fraction(weight) + sum(x * y for x, y in zip(row, column, strict=True)) / 2
            assert exactly(FP8, word) == nearest(FP8, value)
    report = adaptertool.verify(tmp_path / "out", root, [lora])
    assert report.ok
    assert report.summary.exact == 2
    (changed,) = adaptertool.diff(root, tmp_path / "out").tensors
    assert changed.max_ulp is not None
    assert changed.max_ulp > 0
