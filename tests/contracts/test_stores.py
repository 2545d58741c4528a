"""What every store promises, over STORES and one in memory; and that a new one is a file and a line."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load, write_adapter, write_checkpoint
from fake_store import FakeS3, served

import adaptertool
from adaptertool import files
from adaptertool.codecs.tensors import read_tensor
from adaptertool.errors import InputError, StorageError
from adaptertool.files import LOCAL, STORES, Store, objects, store_of
from adaptertool.files.address import Address
from adaptertool.files.checkpoint import open_checkpoint
from adaptertool.files.hashing import BLAKE3, digests_of
from adaptertool.files.jsonfile import load_json
from adaptertool.files.reader import Inputs, exists, names_in, open_input, read_exact, read_into, stamp_of
from adaptertool.files.store import BROKEN, FILE, FOLDER, OTHER, Entry, InputFile
from adaptertool.files.tokenizer import read_tokenizer

Put = Callable[[Path, bytes], None]


class Memory:
    """Files as bytes, by their paths; a version that counts. At most 4 KiB come at a time."""

    def __init__(self) -> None:
        self.content: dict[Path, tuple[int, bytes]] = {}
        self.reads: list[tuple[str, int]] = []
        self._versions = iter(range(1, 1 << 30))
        self.store = Store(
            scheme="memory", open=self._open, look=self._look, entries=self._entries, real=lambda path: path
        )

    def put(self, path: Path, data: bytes) -> None:
        self.content[path] = next(self._versions), data

    def _open(self, path: Path) -> InputFile:
        if path not in self.content:
            raise InputError(f"{path} does not exist" if self._look(path) is None else f"{path} is not a regular file")
        version, data = self.content[path]

        def read_at(offset: int, view: memoryview) -> int:
            self.reads.append((path.name, offset))
            part = data[offset : offset + min(len(view), 1 << 12)]
            view[: len(part)] = part
            return len(part)

        return InputFile(path, len(data), (version, zlib.crc32(data), len(data), 0, 0), read_at, lambda: None)

    def _look(self, path: Path) -> str | None:
        if path in self.content:
            return FILE
        return FOLDER if any(path in other.parents for other in self.content) else None

    def _entries(self, folder: Path) -> list[Entry]:
        if self._look(folder) != FOLDER:
            raise StorageError(f"{folder} cannot be listed: No such file or directory")
        inside = [path.relative_to(folder).parts for path in self.content if folder in path.parents]
        return sorted({Entry(parts[0], len(parts) > 1) for parts in inside})


@dataclasses.dataclass(frozen=True)
class Place:
    """A store, a folder in it, and how a file is put there: anew, never in place."""

    store: Store
    root: Path
    put: Put


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    pytest.importorskip("obstore")
    objects.forget()
    yield from served(monkeypatch)


def _s3(request: pytest.FixtureRequest) -> Place:
    fake: FakeS3 = request.getfixturevalue("s3")

    def put(path: Path, data: bytes) -> None:
        fake.put("/".join(path.parts[2:]), data)
        objects.forget()

    return Place(store_of(Path("s3:/bucket")), Address("s3:/bucket/model"), put)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    new.replace(path)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Registered as one line would."""
    found = Memory()
    monkeypatch.setattr(files, "STORES", (*STORES, found.store))
    return found


PLACES: Mapping[str, Callable[[Path, Memory, pytest.FixtureRequest], Place]] = {
    "local": lambda tmp_path, _memory, _: Place(LOCAL, tmp_path, _put),
    "memory": lambda _, memory, _request: Place(memory.store, Path("memory:/bucket"), memory.put),
    "s3": lambda _, _memory, request: _s3(request),
}
_LIKE_S3 = {"gs", "az"}  # the same code


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, memory: Memory) -> Iterator[Place]:
    yield PLACES[request.param](tmp_path, memory, request)


def test_each_store_is_here() -> None:
    """A store that is added needs a Place above."""
    assert {store.scheme or "local" for store in STORES} <= PLACES.keys() | _LIKE_S3
    assert len({store.scheme for store in STORES}) == len(STORES)


def test_a_path_belongs_to_a_store(place: Place) -> None:
    assert store_of(place.root) is place.store
    assert store_of(place.root / "x" / "y") is place.store
    for path in ("", "memory", "memory:x/y", "/memory:/x", "x/memory:/y", "other:/x"):
        assert store_of(Path(path)) is LOCAL


def test_stamp_changes_with_the_content(place: Place) -> None:
    path = place.root / "x"
    place.put(path, b"one")
    first = stamp_of(path)
    assert stamp_of(path) == first
    assert len(first) == 5
    assert first[2] == 3
    place.put(path, b"two")
    assert stamp_of(path) != first
    place.put(path, b"three")
    assert stamp_of(path)[2] == 5


def test_what_was_planned_with_must_stay(place: Place) -> None:
    """A file that changes is found when it is opened, and at the end; one that is open is read as it was."""
    path = place.root / "x"
    place.put(path, b"0123456789")
    stamp = stamp_of(path)
    with Inputs({path: stamp}) as inputs:
        assert inputs.read(path, 2, 3) == b"234"
        inputs.check_unchanged()
        place.put(path, b"9876543210")
        assert inputs.read(path, 2, 3) == b"234"
        with pytest.raises(InputError, match="changed since it was first read"):
            inputs.check_unchanged()
    with Inputs({path: stamp}) as inputs, pytest.raises(InputError, match="changed since it was first read"):
        inputs.read(path, 0, 1)


def test_ranges_are_exact(place: Place) -> None:
    data, path = os.urandom(100_000), place.root / "x"
    place.put(path, data)
    with open_input(path) as file:
        assert (file.path, file.size) == (path, len(data))
        for offset, size in ((0, 1), (0, 100_000), (99_999, 1), (4095, 4098), (5, 0), (100_000, 0)):
            view = memoryview(bytearray(b"?" * (size + 2)))
            read_into(file, offset, view[1:-1])
            assert view == b"?" + data[offset : offset + size] + b"?"
        for offset, size in ((99_999, 2), (100_000, 1), (0, 100_001)):
            with pytest.raises(InputError, match="ends at byte 100,000"):
                read_exact(file, offset, size)


def test_threads_read_at_once(place: Place) -> None:
    data, path = os.urandom(1 << 16), place.root / "x"
    place.put(path, data)
    wrong: list[int] = []

    def look_at(start: int, inputs: Inputs) -> None:
        wrong.extend(at for at in range(start, 1 << 16, 4096) if inputs.read(path, at, 333) != data[at : at + 333])

    with Inputs({path: stamp_of(path)}) as inputs:
        threads = [threading.Thread(target=look_at, args=(start, inputs)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_fault_while_reading_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.root / "x"
    place.put(path, b"0123")

    def fail(offset: int, view: memoryview) -> int:
        raise OSError(5, f"no answer for {len(view)} bytes at {offset}")

    def opened(path: Path) -> InputFile:
        return dataclasses.replace(place.store.open(path), read_at=fail)

    faulty = dataclasses.replace(place.store, open=opened)
    monkeypatch.setattr("adaptertool.files.reader.store_of", lambda _: faulty)
    with open_input(path) as file, pytest.raises(StorageError, match=r"reading .*x failed: no answer for 4 bytes at 0"):
        read_exact(file, 0, 4)


def test_entries_are_sorted_and_complete(place: Place) -> None:
    names = ["b", "a", "Z", "model-00010-of-2", "é", ".hidden", "two words", "deep/er/x", "deep/y"]
    for name in names:
        place.put(place.root / "folder" / name, name.encode())
    entries = place.store.entries(place.root / "folder")
    expected = sorted({name.partition("/")[0] for name in names})
    assert [entry.name for entry in entries] == expected
    assert [entry.name for entry in entries if entry.is_folder] == ["deep"]
    assert not any(entry.is_link for entry in entries)
    assert [entry.name for entry in place.store.entries(place.root / "folder" / "deep")] == ["er", "y"]
    assert names_in(place.root / "folder", "*e*") == [name for name in expected if "e" in name]
    with pytest.raises(StorageError, match="cannot be listed"):
        place.store.entries(place.root / "none")


def test_look_tells_what_is_there(place: Place) -> None:
    place.put(place.root / "folder" / "x", b"")
    assert place.store.look(place.root / "folder") == FOLDER
    assert place.store.look(place.root / "folder" / "x") == FILE
    for name in ("y", "x/z", "n" * 300, "fold"):
        assert place.store.look(place.root / "folder" / name) is None
        assert not exists(place.root / "folder" / name)
    assert place.store.real(place.root / "folder" / "x") == (place.root / "folder" / "x")


def test_what_is_no_file_is_refused(place: Place) -> None:
    place.put(place.root / "folder" / "x", b"")
    with pytest.raises(InputError, match="none does not exist"):
        open_input(place.root / "none")
    with pytest.raises(InputError, match="folder is not a regular file"):
        open_input(place.root / "folder")


def test_an_open_file_is_closed(place: Place) -> None:
    closed: list[Path] = []
    place.put(place.root / "x", b"abc")
    with open_input(place.root / "x") as file:
        pass
    if file.fd is not None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file.fd)
    counted = dataclasses.replace(place.store.open(place.root / "x"), close=lambda: closed.append(place.root / "x"))
    with counted:
        assert read_exact(counted, 0, 3) == b"abc"
    assert closed == [place.root / "x"]


def test_links_of_the_file_system(tmp_path: Path) -> None:
    """They are of this store alone."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").symlink_to("nothing")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    looks = {entry.name: LOCAL.look(tmp_path / entry.name) for entry in LOCAL.entries(tmp_path)}
    assert looks == {"broken": BROKEN, "circle": BROKEN, "folder": FOLDER, "link": FOLDER, "pipe": OTHER}
    assert [entry.name for entry in LOCAL.entries(tmp_path) if entry.is_folder] == ["folder", "link"]
    assert [entry.name for entry in LOCAL.entries(tmp_path) if entry.is_link] == ["broken", "circle", "link"]
    assert LOCAL.real(tmp_path / "link") == (tmp_path / "folder").resolve()
    with pytest.raises(OSError, match="No such file"):
        LOCAL.real(tmp_path / "broken")
    with pytest.raises(InputError, match="pipe is not a regular file"):
        LOCAL.open(tmp_path / "pipe")


def made(root: Path) -> Path:
    """A small checkpoint of three shards, with assets."""
    random = torch.Generator().manual_seed(4)
    names = ("q.weight", "k.weight", "n.weight")
    write_checkpoint(root, {name: torch.randn((16, 8), generator=random).bfloat16() for name in names}, shards=3)
    (root / "tokenizer.json").write_text('{"model": 1}')
    (root / "additional_chat_templates").mkdir()
    (root / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    (root / "runs").mkdir()
    (root / "runs" / "events.out.tfevents.1").write_text("x")
    return root


def copied(root: Path, memory: Memory) -> Path:
    there = Path("memory:/bucket/model")
    for path in root.rglob("*"):
        if path.is_file():
            memory.put(there / path.relative_to(root), path.read_bytes())
    return there


def test_a_store_is_a_file_and_a_line(tmp_path: Path, memory: Memory) -> None:
    """A checkpoint in a store that nobody knows of opens, reads and hashes as the same one on the disk."""
    here = made(tmp_path / "base")
    there = copied(here, memory)
    local, remote = open_checkpoint(here), open_checkpoint(there)
    assert list(local.tensors) == list(remote.tensors)
    assert local.config == remote.config == load_json(there / "config.json")
    assert local.notes == remote.notes
    assert [(a.name, a.size) for a in local.assets] == [(a.name, a.size) for a in remote.assets]
    assert "additional_chat_templates/tool.jinja" in {asset.name for asset in remote.assets}
    assert read_tokenizer(here).keys() == read_tokenizer(there).keys() == {
        "tokenizer.json", "additional_chat_templates/tool.jinja",
    }  # fmt: skip
    stamps = {header.path: header.stamp for header in (*local.headers, *remote.headers)}
    with Inputs(stamps) as inputs:
        for name, ref in local.tensors.items():
            one, other = (read_tensor(inputs, r, 0, r.spec.numel) for r in (ref, remote.tensors[name]))
            assert np.array_equal(one, other)
        for header in remote.headers:
            inputs.stream(header.path)
            assert inputs.hash(header.path)[BLAKE3] == digests_of(here / header.path.name)[BLAKE3]
        inputs.check_unchanged()
    assert not any(name == "events.out.tfevents.1" for name, _ in memory.reads)


def test_faults_of_a_checkpoint_are_told_alike(tmp_path: Path, memory: Memory) -> None:
    """The message names the path, and is otherwise the same."""

    def message(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            open_checkpoint(path)
        return str(caught.value).replace(str(path), "HERE")

    here = made(tmp_path / "base")
    shutil.copy(here / "model-00001-of-00003.safetensors", here / "model.safetensors")
    assert message(here) == message(copied(here, memory))
    (here / "model.safetensors").unlink()
    memory.content.pop(Path("memory:/bucket/model/model.safetensors"))
    (here / "model-00002-of-00003.safetensors").write_bytes(b"short")
    assert message(here) == message(copied(here, memory))
    (here / "model.safetensors.index.json").unlink()
    memory.content.clear()
    assert message(here) == message(copied(here, memory))
    assert message(tmp_path / "none") == message(Path("memory:/none"))


def test_a_base_in_another_store_is_merged(tmp_path: Path, memory: Memory) -> None:
    here = made(tmp_path / "base")
    there = copied(here, memory)
    random = torch.Generator().manual_seed(5)
    factors = {"q.lora_A.weight": torch.randn((4, 8), generator=random), "q.lora_B.weight": torch.ones(16, 4)}
    lora = write_adapter(tmp_path / "lora", factors)
    adaptertool.merge(here, [lora], tmp_path / "one")
    adaptertool.merge(there, [lora], tmp_path / "two")
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
