"""Files that are written past what the system keeps of files: the same bytes; what is refused is written as usual."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3
from conftest import lora_factors, write_adapter, write_checkpoint

from adaptertool import merge
from adaptertool.errors import StorageError
from adaptertool.files import direct
from adaptertool.files.direct import Away, Direct, worth_while
from adaptertool.files.writer import OutputFile

SIZE = 3_000_017
DATA = np.random.default_rng(0).bytes(SIZE)


def write(path: Path, cuts: list[int]) -> OutputFile:
    """The file of DATA, cut at these offsets, by two threads, from memory that is not aligned."""
    file = OutputFile(path, SIZE, away=contextlib.nullcontext)
    parts = list(itertools.pairwise([0, *cuts, SIZE]))

    def some(own: list[tuple[int, int]]) -> None:
        for begin, end in own:
            file.write(begin, memoryview(b"x" + DATA[begin:end])[1:])

    threads = [threading.Thread(target=some, args=(parts[number::2],)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return file


def check(path: Path, file: OutputFile) -> None:
    assert file.digests == {"blake3": blake3(DATA).hexdigest()}
    file.finish()
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    "cuts", [[], [1], [4096, 8192], [100, 4095, 70_000, 200_001, 200_002, 1_500_000], [SIZE - 1], [1 << 20, 1 << 21]]
)
def test_bytes_and_hashes(tmp_path: Path, cuts: list[int]) -> None:
    check(tmp_path / "file", write(tmp_path / "file", cuts))


def test_whole_pages_are_written_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    try:
        file = Direct(path, contextlib.nullcontext)
        begin, end = file.write(100, memoryview(DATA)[100:])
    except OSError:
        pytest.skip("this file system has no such writes")
    if end:
        assert ((100 + begin) % 4096, (100 + end) % 4096) == (0, 0)
        assert begin < 1 << 16
        assert SIZE - 100 - end < 1 << 16
        assert path.read_bytes() == bytes(100 + begin) + DATA[100 + begin : 100 + end] + bytes(SIZE - 100 - end)
    assert file.write(4096, memoryview(DATA)[: (1 << 16) - 1]) == (0, 0)  # too little
    file.close()
    file.close()


def test_refused_when_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(Direct, "__init__", refuse)
    check(tmp_path / "file", write(tmp_path / "file", [200_001]))


@pytest.mark.parametrize("how", ["refused", "short"])
def test_refused_when_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Once: no more is then written so. Or fewer bytes are taken than given, which need not end a page."""
    path, real, asked = tmp_path / "file", os.pwrite, list[int]()

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if fd not in own:
            return real(fd, data, offset)
        asked.append(offset)
        if how == "refused":
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, data[: len(data) // 2 + 1], offset)

    def opened(self: Direct, where: Path, away: Away) -> None:  # as usual, so that any number of bytes may be written
        self._away = away
        self._fd, self._refused = os.open(where, os.O_WRONLY), False
        own.append(self._fd)

    own = list[int]()
    monkeypatch.setattr(Direct, "__init__", opened)
    monkeypatch.setattr(os, "pwrite", pwrite)
    file = write(path, [200_001, 1_000_000])
    check(path, file)
    assert len(asked) in ((1, 2) if how == "refused" else (3, 4))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> tuple[int, int]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Direct, "__init__", lambda *_: None)
    monkeypatch.setattr(Direct, "close", lambda *_: None)
    monkeypatch.setattr(Direct, "write", full)
    file = OutputFile(tmp_path / "file", SIZE, away=contextlib.nullcontext)
    with pytest.raises(StorageError, match="file failed: No space left"):
        file.write(0, memoryview(DATA))
    file.close()


def test_when_it_is_worth_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_free_memory", lambda: 1e9)
    monkeypatch.setattr(direct, "_file_system", lambda _: 0xEF53)
    assert [worth_while(tmp_path, size) for size in (10**8, 3 * 10**8)] == [False, True]
    monkeypatch.setattr(direct, "_file_system", lambda _: 0x01021994)  # tmpfs
    assert not worth_while(tmp_path, 3 * 10**8)
    monkeypatch.undo()
    assert not worth_while(tmp_path, 1)
    assert worth_while(tmp_path / "not there", 1 << 60) is False


def test_merges_of_many_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"m.{n}.q_proj.weight": torch.ones(300, 300) for n in range(3)}
    base = write_checkpoint(tmp_path / "base", {**tensors, "other": torch.ones(777, 333)})
    adapter = write_adapter(tmp_path / "adapter", lora_factors("m.1.q_proj", (300, 300)))
    merge(base, [adapter], tmp_path / "usual")
    monkeypatch.setattr("adaptertool.engine.execute.worth_while", lambda *_: True)
    merge(base, [adapter], tmp_path / "out")
    for path in (tmp_path / "usual").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    merge(base, [adapter], tmp_path / "hashed", sha256=True)  # read back, so written as usual
    assert (tmp_path / "hashed/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()
