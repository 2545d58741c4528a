"""Receipts: of any content, in any order, from several at once, and where there are no links."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from conftest import snapshot
from staged import Place

from adaptertool.errors import OutputError, StorageError
from adaptertool.files import receipts as module
from adaptertool.files.hashing import DEFAULT
from adaptertool.files.leftovers import left_behind
from adaptertool.files.receipts import Receipt, Receipts, of_inputs, parsed
from adaptertool.files.stage import Finished
from adaptertool.files.staging import Staging
from adaptertool.spec.tally import Fate, Tally

KEY = "0123456789abcdef"
HASH = blake3(b"1").hexdigest()
GOOD = {"schema": "receipt/1", "name": "one", "part": ".part-0", "size": 1, "blake3": HASH, "tally": Tally()}


def test_what_is_written_is_read() -> None:
    tally, fates = Tally(3, 2, 1, 0.5, 0.25), {"q_proj": Fate(4, 3, 2, 1, 0.5, 0.25, 0.125)}
    one = Receipt("a/b\udcff.bin", ".part-0", Finished(5, {"blake3": HASH}, tally, fates), {"0/x": {"blake3": HASH}})
    assert parsed(one.content(), DEFAULT) == one
    assert parsed(of_inputs(one.inputs).content(), DEFAULT) == of_inputs(one.inputs)


OTHERS: dict[str, Any] = {
    "no JSON": b"\xff\xfe",
    "empty": b"",
    "deep": b"[" * 100_000,
    "long number": b"1" * 5000,
    "zeros": b"\0" * 50,
    "cut short": json.dumps(GOOD).encode()[:-9],
    "list": [1, 2],
    "null": None,
    "another schema": {**GOOD, "schema": "receipt/2"},
    "size is text": {**GOOD, "size": "1"},
    "size is true": {**GOOD, "size": True},
    "size is another": {**GOOD, "size": 2},
    "hash is a list": {**GOOD, "blake3": [HASH]},
    "hash of something else": {**GOOD, "blake3": "0" * 64},
    "no hash": {name: value for name, value in GOOD.items() if name != "blake3"},
    "tally is short": {**GOOD, "tally": [1, 2]},
    "part leads out": {**GOOD, "part": "../../base/config.json"},
    "part is another file": {**GOOD, "part": ".part-1"},
    "part has a NUL": {**GOOD, "part": ".part-\0"},
    "name leads out": {**GOOD, "name": "../one"},
    "name is absolute": {**GOOD, "name": "/etc/passwd"},
    "name is no text": {**GOOD, "name": ["one"]},
    "NUL": {**GOOD, "name": "a\0b"},
    "inputs are no hashes": {"schema": "receipt/1", "inputs": {"0/config.json": "x", "1/y": {"blake3": 3}}},
    "inputs are a list": {"schema": "receipt/1", "inputs": ["x"]},
}


def written(folder: Path, content: Any) -> Path:
    """A staging directory with one part, and a receipt of this content under the name that it should have."""
    name = content.get("name") if isinstance(content, dict) else "one"
    key = blake3(name.encode() if isinstance(name, str) else b"").hexdigest(16)
    for inner in ("receipts", "parts"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    (folder / "parts/.part-0").write_bytes(b"1")
    path = folder / f"receipts/{key}.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize("case", OTHERS)
def test_receipts_of_any_content(tmp_path: Path, case: str) -> None:
    (tmp_path / "one").write_bytes(b"1")
    folder = tmp_path / f".out.adaptertool-{KEY}"
    written(folder, OTHERS[case])
    for way in ({}, {"shared": True}):
        with pytest.raises(StorageError, match=r"full$"), Staging(tmp_path / "out", KEY, **way) as stage:
            assert stage.finished == {} and stage.inputs == {}
            raise StorageError("the disk is full")
        written(folder, OTHERS[case])
    assert (tmp_path / "one").read_bytes() == b"1"


def test_a_good_one_is_taken_over(tmp_path: Path) -> None:
    written(tmp_path / f".out.adaptertool-{KEY}", GOOD)
    with Staging(tmp_path / "out", KEY, shared=True) as stage:
        assert stage.finished == {"one": Finished(1, {"blake3": HASH})}
        stage.assemble(["one"])
        assert (stage.work / "one").read_bytes() == b"1"


@pytest.mark.parametrize("content", [b"", b"[1]", json.dumps(GOOD).encode()[:20]])
def test_what_is_no_receipt_is_in_nobodys_way(place: Place, merged: dict[str, bytes], content: bytes) -> None:
    """A run that was killed where there are no links leaves that."""
    written(place.stage, {"name": "config.json"}).write_bytes(content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_WRITING", 0)
        place.merge()
    assert snapshot(place.out) == merged and left_behind(place.out) == []


def test_the_first_of_many_counts(tmp_path: Path) -> None:
    """Threads that finish the same file at the same time: one does, and all hear which."""
    for links in (True, False):
        folder = tmp_path / f"links {links}"
        folder.mkdir()
        found: list[Receipt] = []
        start = threading.Barrier(8)

        def place(number: int, folder: Path = folder, found: list[Receipt] = found, start: Any = start) -> None:
            start.wait()
            own = Receipt("x", f".part-{number}", Finished(number, {"blake3": HASH}))
            found.append(Receipts(folder, DEFAULT).place(own))

        with pytest.MonkeyPatch.context() as patched:
            if not links:
                patched.setattr(os, "link", _no_links)
            threads = [threading.Thread(target=place, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(found) == 8 and len(set(map(Receipt.content, found))) == 1
        assert len(list(folder.iterdir())) == 1


def _no_links(*_: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_the_loser_removes_its_part(tmp_path: Path) -> None:
    with Staging(tmp_path / "out", KEY, shared=True) as one, Staging(tmp_path / "out", KEY, shared=True) as two:
        for number, stage in enumerate((one, two)):
            (part := stage.part()).write_text(f"{number}")
            stage.has_read(tmp_path, {"blake3": HASH})
            stage.finish(part, "file", {"blake3": blake3(f"{number}".encode()).hexdigest()})
        assert one.finished == two.finished and one.folder == two.folder and one.work != two.work
        assert [path.read_text() for path in (one.folder / "parts").iterdir()] == ["0"]
        for stage in (one, two):
            stage.assemble(stage.finished)
            assert (stage.work / "file").read_text() == "0"
        two.publish(two.work, force=False)
        two.__exit__(None, None, None)
        with pytest.raises(OutputError, match="has published"):
            one.part()
    assert snapshot(tmp_path) == {"out/file": b"0"}


def test_a_run_without_links_is_killed_while_it_publishes(
    place: Place, merged: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files have gone into OUT to be, and are found there."""
    monkeypatch.setattr(os, "link", _no_links)
    seen: list[int] = []

    def assembled(stage: Staging, *_: Any, **__: Any) -> None:
        seen.append(len(list(stage.work.rglob("*.safetensors"))))
        monkeypatch.setattr(Staging, "_leave", lambda self, **_: os.close(self._lock))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Staging, "publish", assembled)
        with pytest.raises(KeyboardInterrupt):
            place.merge()
    monkeypatch.undo()
    (work,) = place.stage.glob("work-*")
    inodes = {path.name: path.stat().st_ino for path in work.glob("*.safetensors")}
    assert seen == [2] and len(inodes) == 2
    place.merge()
    assert snapshot(place.out) == merged and left_behind(place.out) == []
    assert {name: (place.out / name).stat().st_ino for name in inodes} == inodes


def test_parts_of_other_machines_are_spared(place: Place, merged: dict[str, bytes]) -> None:
    """They may be at work where we do not hear of their locks."""
    (place.stage / "parts").mkdir(parents=True)
    other = place.stage / "parts/.part-00000000-0123456789abcdef"
    other.write_bytes(b"theirs")
    there: list[bool] = []
    place.merge(progress=lambda _: there.append(other.exists()))
    assert all(there) and snapshot(place.out) == merged
