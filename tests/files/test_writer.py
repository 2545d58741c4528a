"""Copies of ranges of files: read once, hashed once, and blocks shared where the file system can."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from adaptertool.errors import InputError, StorageError
from adaptertool.files.reader import Inputs, stamp_of
from adaptertool.files.writer import OutputFile, copy_range

DATA = np.random.default_rng(0).bytes(10**6 + 77)
WHOLE = 7 << 16


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def inputs(source: Path) -> Iterator[Inputs]:
    with Inputs({source: stamp_of(source)}) as found:
        yield found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[tuple[int, ...]]]:
    """Has the call that shares blocks fail with an error, or, for 0, copy as if it shared. Returns what it is asked."""

    def answer(code: int) -> list[tuple[int, ...]]:
        calls: list[tuple[int, ...]] = []

        def ioctl(fd: int, number: int, argument: bytes) -> int:
            assert number == 0x4020940D and struct.calcsize("qQQQ") == len(argument)
            source, offset, size, target = struct.unpack("qQQQ", argument)
            calls.append((offset, size, target))
            if code:
                raise OSError(code, os.strerror(code))
            assert not (offset | size | target) % 4096
            os.lseek(fd, target, os.SEEK_SET)
            return os.write(fd, os.pread(source, size, offset)) * 0

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        return calls

    return answer


def copied(inputs: Inputs, source: Path, out: Path, *ranges: tuple[int, int]) -> str:
    """A file like the source, of these copied ranges of it; returns the hash that was made on the way."""
    file = OutputFile(out, len(DATA))
    for begin, end in ranges:
        copy_range(inputs, source, begin, end - begin, [(file, begin)], memoryview(bytearray(100_000)))
    found = file.digests["blake3"]
    file.finish()
    return found


def test_blocks_are_shared(inputs: Inputs, source: Path, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, wrote, real = asked(0), list[int](), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: wrote.append(at) or real(fd, data, at))
    inputs.stream(source)
    digest = copied(inputs, source, source.with_name("out"), (0, WHOLE), (WHOLE, WHOLE + 9), (WHOLE + 9, len(DATA)))
    assert calls == [(0, WHOLE, 0)]
    assert wrote and min(wrote) >= WHOLE
    assert source.with_name("out").read_bytes() == DATA
    assert digest == blake3(DATA).hexdigest() == inputs.hash(source)["blake3"]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSPC, errno.EPERM])
def test_where_they_cannot_be_shared(inputs: Inputs, source: Path, asked: Any, code: int) -> None:
    """Whatever the reason, they are written, and nothing more is asked."""
    calls = asked(code)
    digest = copied(inputs, source, source.with_name("out"), (0, WHOLE), (WHOLE, 2 * WHOLE), (2 * WHOLE, len(DATA)))
    assert len(calls) == 1
    assert source.with_name("out").read_bytes() == DATA and digest == blake3(DATA).hexdigest()


@pytest.mark.parametrize("cut", [100_000, 3 << 16])
def test_they_are_written_before_they_are_hashed(
    inputs: Inputs, source: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since to be hashed they may be read back at once."""
    monkeypatch.setattr("adaptertool.files.tree._KEPT", 0)
    assert copied(inputs, source, source.with_name("out"), (0, cut), (cut, len(DATA))) == blake3(DATA).hexdigest()


@pytest.mark.parametrize("shared", [True, False])
def test_to_several_outputs_and_offsets(inputs: Inputs, source: Path, asked: Any, *, shared: bool) -> None:
    """The input is read once."""
    asked(0 if shared else errno.EOPNOTSUPP)
    inputs.stream(source)
    before = 1 << 16
    files = [OutputFile(source.with_name(f"out{shift}"), shift + len(DATA)) for shift in (0, before, 24)]
    places = [(file, file.size - len(DATA)) for file in files]
    with pytest.MonkeyPatch.context() as patch:
        read, real = list[int](), os.preadv
        patch.setattr(os, "preadv", lambda fd, parts, at: read.append(at) or real(fd, parts, at))
        for begin, end in ((0, WHOLE), (WHOLE, len(DATA))):
            copy_range(
                inputs,
                source,
                begin,
                end - begin,
                [(file, at + begin) for file, at in places],
                memoryview(bytearray(100_000)),
            )
        assert len(read) == len(set(read))
    for file, shift in places:
        file.write(0, memoryview(bytes(shift)))
        assert file.digests["blake3"] == blake3(bytes(shift) + DATA).hexdigest()
        file.finish()
        assert file.path.read_bytes() == bytes(shift) + DATA
    assert inputs.hash(source)["blake3"] == blake3(DATA).hexdigest()


def test_an_input_that_ends_early(inputs: Inputs, source: Path) -> None:
    file = OutputFile(source.with_name("out"), len(DATA))
    with inputs.opened(source):
        os.truncate(source, WHOLE)
        with pytest.raises(InputError, match=f"ends at byte {WHOLE:,}; it was shortened while it was read"):
            copy_range(inputs, source, 0, 2 * WHOLE, [(file, 0)], memoryview(bytearray(100_000)))
    file.close()


def test_a_full_disk(inputs: Inputs, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = OutputFile(source.with_name("out"), len(DATA))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="No space left on device"):
        copy_range(inputs, source, 0, WHOLE, [(file, 0)], memoryview(bytearray(100_000)))
    file.close()
