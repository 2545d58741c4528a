"""The BLAKE3 of files of which parts come in any order, against the library's own, at every level of instructions."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from adaptertool.errors import InternalError
from adaptertool.files import hashing
from adaptertool.files.hashing import BLAKE3, DEFAULT, WITH_SHA256, InOrder, hash_all, hasher
from adaptertool.files.tree import Tree
from adaptertool.files.writer import OutputFile
from adaptertool.numerics import compiled, tree_hash
from adaptertool.numerics.tree_hash import GROUP

CHUNK = 1024
# Around blocks of 64 bytes, chunks, batches of chunks, groups, and powers of two of these
SIZES = sorted(
    {
        0,
        1,
        1023,
        2 * CHUNK + 1,
        GROUP - 1,
        GROUP,
        3 * GROUP - CHUNK,
        7 * GROUP + 9 * CHUNK,
        17 * GROUP + 33 * CHUNK + 65,
    }
    | {groups * GROUP + more for groups in (1, 2, 3, 5, 8) for more in (0, 1, 63, 64, 65, CHUNK, CHUNK + 1, GROUP - 1)}
)
DATA = np.random.default_rng(0).bytes(SIZES[-1])

pytestmark = pytest.mark.skipif(not tree_hash.available(), reason="no compiled kernel: there was no C compiler")


@pytest.fixture(params=compiled.levels())
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_hash, "FUNCTIONS", compiled.functions(request.param))


def digest(data: bytes) -> str:
    return blake3(data).hexdigest()


def refusing(_: int, view: memoryview) -> None:
    assert not len(view), "nothing is to be read"


def reading(data: bytes, read: list[int] | None = None) -> Any:
    def fill(offset: int, view: memoryview) -> None:
        if read is not None:
            read.append(len(view))
        view[:] = data[offset : offset + len(view)]

    return fill


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("size", SIZES)
def test_whole_files(size: int) -> None:
    data = DATA[:size]
    at_once = Tree(size, refusing)
    at_once.has(0, memoryview(data))
    assert at_once.complete() and at_once.digests() == {BLAKE3: digest(data)}
    assert Tree(size, reading(data)).digests() == {BLAKE3: digest(data)}


def test_official_vectors() -> None:
    """Of test_vectors.json of the reference implementation: the bytes are 0, 1, ... 250, 0, ..."""
    known = {102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"}
    for size, expected in known.items():
        data = bytes(n % 251 for n in range(size))
        state = Tree(size, refusing)
        state.has(0, memoryview(data))
        assert state.digests()[BLAKE3] == expected


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("seed", range(30))
def test_parts_in_any_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts overlap, come early, come twice, or not at all, and there may be no room to keep them."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr("adaptertool.files.tree._KEPT", int(rng.integers(0, 4)))
    data = DATA[: int(rng.integers(0, 9 * GROUP))]
    state, missing = Tree(len(data), reading(data)), np.ones(len(data), bool)
    for _ in range(int(rng.integers(1, 60))):
        begin = int(rng.integers(0, len(data) + 1))
        buffer = bytearray(data[begin : begin + int(rng.choice([1, 100, CHUNK, GROUP - 1, GROUP, 3 * GROUP]))])
        state.has(begin, memoryview(buffer))
        missing[begin : begin + len(buffer)] = False
        buffer[:] = b"x" * len(buffer)  # it is used for something else
    assert state.complete() == (not missing.any())
    assert state.digests() == {BLAKE3: digest(data)}


@pytest.mark.parametrize("kept", [0, 2, 64])
def test_every_byte_once_is_complete(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small parts and any order; only what there was no room for is read."""
    monkeypatch.setattr("adaptertool.files.tree._KEPT", kept)
    data, read = DATA[: 5 * GROUP + 777], list[int]()
    state = Tree(len(data), reading(data, read))
    for begin in np.random.default_rng(kept).permutation(range(0, len(data), 5000)).tolist():
        assert not state.complete()
        state.has(begin, memoryview(data)[begin : begin + 5000])
    assert state.complete() and bool(read) == (kept < 64)
    assert state.digests() == {BLAKE3: digest(data)}
    assert sum(read) <= len(data)


@pytest.mark.parametrize("size", [2 * GROUP + 5, 9 * GROUP])
def test_many_threads_at_once(size: int) -> None:
    data = DATA[:size]
    state = Tree(len(data), refusing)
    begins = list(range(0, len(data), 12345))

    def give(number: int) -> None:
        for begin in begins[number::8]:
            state.has(begin, memoryview(data)[begin : begin + 12345])

    threads = [threading.Thread(target=give, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.complete() and state.digests() == {BLAKE3: digest(data)}


def test_far_into_a_file() -> None:
    """Numbers of chunks above 2³²: the value of one chunk is that of the specification, computed by itself."""
    first = (1 << 32) // 64 + 5
    found = tree_hash.values_of(memoryview(DATA[:CHUNK]), first)
    assert found[0].tolist() == value_of_a_chunk(DATA[:CHUNK], first * 64)
    assert tree_hash.values_of(memoryview(DATA[:100]), 1)[0].tolist() == value_of_a_chunk(DATA[:100], 64)


def value_of_a_chunk(data: bytes, number: int) -> list[int]:
    """Sections 2.2 to 2.4 of the specification, in integers of Python."""
    start = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
    moved = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
    value = start
    for at in range(0, len(data), 64):
        block = data[at : at + 64]
        flags = (at == 0) + 2 * (at + 64 >= len(data))
        m = np.frombuffer(block.ljust(64, b"\0"), "<u4").tolist()
        v = [*value, *start[:4], number & 0xFFFFFFFF, number >> 32, len(block), flags]
        for _ in range(7):
            for n in range(8):  # columns, then diagonals
                turn = n // 4
                a, b, c, d = (4 * row + (n + turn * row) % 4 for row in range(4))
                for word, one, two in ((m[2 * n], 16, 12), (m[2 * n + 1], 8, 7)):
                    v[a] = (v[a] + v[b] + word) & 0xFFFFFFFF
                    v[d] = turned(v[d] ^ v[a], one)
                    v[c] = (v[c] + v[d]) & 0xFFFFFFFF
                    v[b] = turned(v[b] ^ v[c], two)
            m = [m[n] for n in moved]
        value = [v[n] ^ v[n + 8] for n in range(8)]
    return value


def turned(x: int, by: int) -> int:
    return (x >> by | x << (32 - by)) & 0xFFFFFFFF


def test_the_same_bytes_at_the_same_offset_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In several files, whatever else is in them, and one so small that it has no groups."""
    count, real = 0, tree_hash.values_of

    def counted(data: memoryview, first: int) -> Any:
        nonlocal count
        count += len(data)
        return real(data, first)

    monkeypatch.setattr("adaptertool.files.tree.values_of", counted)
    begin, end = GROUP - 8, 6 * GROUP + 100
    common = memoryview(DATA)[begin:end]
    contents = [DATA[:end], b"x" * begin + DATA[begin:end] + b"y" * GROUP, b"abc" + DATA[begin:end]]
    states = [hasher(len(one), reading(one), DEFAULT) for one in contents]
    with_sha = hasher(len(contents[0]), reading(contents[0]), WITH_SHA256)
    assert isinstance(with_sha, InOrder)
    hash_all([(states[0], begin), (with_sha, begin), (states[1], begin), (states[2], 3)], common)
    assert count == 5 * GROUP + (len(contents[2]) // GROUP - 1) * GROUP
    small = hasher(100, reading(DATA[:100]), DEFAULT)
    hash_all([(states[0], 0), (small, 0)], memoryview(DATA)[:100])
    assert [state.digests()[BLAKE3] for state in states] == [digest(one) for one in contents]
    assert with_sha.digests()[BLAKE3] == digest(contents[0])
    assert small.digests()[BLAKE3] == digest(DATA[:100])


@pytest.mark.parametrize("size", [0, 1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 3 * GROUP - 7])
def test_outputs_that_are_shortened(tmp_path: Path, size: int) -> None:
    """As those are whose sizes are known at the end: the first bytes are written last."""
    file = OutputFile(tmp_path / "file", 5 * GROUP + 123)
    data = memoryview(DATA)[:size]
    for begin in range(100, size, 10**5):
        file.write(begin, data[begin : min(size, begin + 10**5)])
    file.shorten(size)
    if size:
        with pytest.raises(InternalError, match="not all of its"):
            _ = file.digests
        file.write(0, data[:100])
    assert file.digests[BLAKE3] == digest(data.tobytes())
    file.finish()


def test_without_a_kernel_hashes_are_made_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_hash, "FUNCTIONS", {})
    state = hasher(len(DATA), reading(DATA), DEFAULT)
    assert isinstance(state, InOrder) and state.digests()[BLAKE3] == digest(DATA)
    assert isinstance(hashing.hasher(5, refusing, DEFAULT), InOrder)


def test_a_file_of_one_group_has_no_hash_from_values() -> None:
    with pytest.raises(ValueError, match="as a whole"):
        tree_hash.hash_of(np.zeros((1, tree_hash.WORDS), np.uint32))
