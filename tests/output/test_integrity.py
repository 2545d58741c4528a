"""`verify` of files against their manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES, adaptertool
from manifests import MANIFEST, SUMS, checkpoint, lora

from adaptertool import merge, wise
from adaptertool.errors import InputError, StorageError
from adaptertool.files import leftovers
from adaptertool.output.integrity import check_files
from adaptertool.render.machine import to_json
from adaptertool.render.verify import files_text

pytestmark = pytest.mark.usefixtures("small_pieces")

# --- files against the manifest ---


@pytest.fixture
def out(tmp_path: Path) -> Path:
    base = checkpoint(tmp_path / "base")
    (base / "sub").mkdir()
    (base / "sub/notes.txt").write_text("notes")
    merge(base, [lora(tmp_path / "a")], tmp_path / "out", sha256=True)
    return tmp_path / "out"


def test_right_files(out: Path) -> None:
    read: list[int] = []
    report = check_files(out, read.append)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert report.ok and report.wrong == ()
    assert report.files == report.right == len(files)
    assert sum(read) == report.bytes == sum(p.stat().st_size for p in files if p.name not in (MANIFEST, SUMS))
    assert files_text(report).startswith(f"{out}: all {len(files)} files are as the manifest says")
    assert json.loads(to_json(report))["schema"] == "files/1"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


SHARD = "model-00001-of-00003.safetensors"
HARM: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "missing": (lambda out: (out / SHARD).unlink(), {SHARD: "missing"}),
    "extra": (lambda out: (out / "sub/more").write_text(""), {"sub/more": "not in the manifest"}),
    "shorter": (lambda out: os.truncate(out / SHARD, 5), {SHARD: "size"}),
    "a bit": (lambda out: _flip(out / SHARD), {SHARD: "content"}),
    "a link": (lambda out: _link(out / SHARD), {SHARD: "no plain file"}),
    "a link to a folder": (
        lambda out: ((out / "sub").rename(out.parent / "sub"), (out / "sub").symlink_to("../sub")),
        {"sub": "no plain file", "sub/notes.txt": "missing"},
    ),
    "a FIFO": (lambda out: ((out / SHARD).unlink(), os.mkfifo(out / SHARD)), {SHARD: "no plain file"}),
    "sums": (lambda out: _flip(out / SUMS), {SUMS: "content"}),
    "no sums": (lambda out: (out / SUMS).unlink(), {SUMS: "missing"}),
    "manifest": (lambda out: (out / MANIFEST).write_bytes((out / MANIFEST).read_bytes() + b" "), {SUMS: "content"}),
}


@pytest.mark.parametrize("case", HARM)
def test_wrong_files(out: Path, case: str) -> None:
    harm, expected = HARM[case]
    harm(out)
    report = check_files(out)
    assert not report.ok
    assert {wrong.name: wrong.status for wrong in report.wrong} == expected
    assert report.right == report.files - len(expected.keys() & {SHARD, SUMS, "sub/notes.txt"})
    for name, status in expected.items():
        assert f"\n  {status}: {name}" in files_text(report)


def test_a_sweep_and_each_part_of_it(tmp_path: Path) -> None:
    wise(checkpoint(tmp_path / "base"), lora(tmp_path / "a"), tmp_path / "out", "0,0.5")
    assert check_files(tmp_path / "out").ok and check_files(tmp_path / "out/alpha-0.500").ok
    _flip(tmp_path / "out/alpha-0.500" / MANIFEST)
    assert [wrong.name for wrong in check_files(tmp_path / "out").wrong] == [f"alpha-0.500/{MANIFEST}"]


GOOD = {"size": 1, "blake3": "0" * 64}
MALFORMED: dict[str, object] = {
    "empty": {},
    "other schema": {"schema": "manifest/9", "files": {"a": GOOD}},
    "schema of another type": {"schema": ["manifest/1"], "files": {"a": GOOD}},
    "no files": {"files": {}},
    "list": {"files": ["a"]},
    "number": {"files": {"a": 1}},
    "no size": {"files": {"a": {"blake3": "0" * 64}}},
    "no hash": {"files": {"a": {"size": 1}}},
    "more": {"files": {"a": {**GOOD, "md5": "0"}}},
    "size": {"files": {"a": {**GOOD, "size": "1"}}},
    "negative": {"files": {"a": {**GOOD, "size": -1}}},
    "true": {"files": {"a": {**GOOD, "size": True}}},
    "short hash": {"files": {"a": {**GOOD, "blake3": "0"}}},
    "hash of another type": {"files": {"a": {**GOOD, "blake3": 0}}},
    "sha256 of some": {"files": {"a": GOOD, "b": {**GOOD, "sha256": "0" * 64}}},
    "itself": {"files": {MANIFEST: GOOD}},
    "not an object": [],
    **{
        f"leads out: {name!r}": {"files": {name: GOOD}}
        for name in ("../a", "/a", "a/../b", "", ".", "a//b", "a\0", "a/")
    },
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_manifests(tmp_path: Path, case: str) -> None:
    content = MALFORMED[case]
    if isinstance(content, dict) and content:
        content = {"schema": "manifest/1", **content}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(InputError, match=MANIFEST):
        check_files(tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(InputError, match="manifest"):
            check_files(path)
    (tmp_path / "real").write_text("{}")
    (tmp_path / MANIFEST).symlink_to("real")
    with pytest.raises(InputError, match="is a link"):
        check_files(tmp_path)


def test_what_cannot_be_read(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "readv", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        check_files(out)


def test_options_of_the_command_line(tmp_path: Path) -> None:
    command = ["merge", FIXTURES / "base", FIXTURES / "lora", "-o", tmp_path / "out", "--sha256"]
    done = adaptertool(*command, "--provenance", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / SUMS).is_file() and (tmp_path / "p.json").is_file()
    assert adaptertool(*command, "--provenance", tmp_path / "p.json", "--force").returncode == 0
    assert leftovers.left_behind(tmp_path / "out") == []


def test_verify_without_a_base(tmp_path: Path) -> None:
    base, adapter, out = checkpoint(tmp_path / "base"), lora(tmp_path / "a"), tmp_path / "out"
    merge(base, [adapter], out)
    done = adaptertool("verify", out)
    assert done.returncode == 0
    assert "files are as the manifest says" in done.stdout
    weights = next(out.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    done = adaptertool("verify", out, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["schema"], found["wrong"]) == ("files/1", [{"name": weights.name, "status": "content"}])
    done = adaptertool("verify", out, "--strict")
    assert (done.returncode, "give the BASE too" in done.stderr) == (2, True)
    done = adaptertool("verify", base)
    assert (done.returncode, "has no adaptertool.manifest.json" in done.stderr) == (3, True)
