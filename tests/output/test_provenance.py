"""Statements of provenance: what they say, and where they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import snapshot
from manifests import checkpoint, lora, manifest, tree

from adaptertool import merge
from adaptertool.errors import AdapterToolError, OutputError, StorageError, UsageError
from adaptertool.output.integrity import check_files

pytestmark = pytest.mark.usefixtures("small_pieces")

# --- provenance ---


def test_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = checkpoint(tmp_path / "base"), lora(tmp_path / "a")
    merge(base, [adapter], tmp_path / "out", weights=[0.5], provenance=tmp_path / "p.json")
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {subject["name"]: subject["digest"] for subject in content["subject"]}
    assert subjects == {name: {"sha256": own["sha256"]} for name, own in tree(tmp_path / "out", sha256=True).items()}
    definition, details = content["predicate"]["buildDefinition"], content["predicate"]["runDetails"]
    assert definition["externalParameters"] == manifest(tmp_path / "out")["recipe"]
    assert definition["buildType"] == "pkg:generic/adaptertool#checkpoint/v1"
    found = {dependency["name"]: dependency["digest"]["sha256"] for dependency in definition["resolvedDependencies"]}
    expected = {f"base/{name}": own["sha256"] for name, own in tree(base, sha256=True).items()}
    expected |= {f"sources/0/{name}": own["sha256"] for name, own in tree(adapter, sha256=True).items()}
    assert found == expected
    assert details == {"builder": {"id": "pkg:generic/adaptertool", "version": {"adaptertool": "0.1.0"}}}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("q.json", "r.json"):
        merge(base, [adapter], tmp_path / name[0], weights=[0.5], provenance=tmp_path / name)
    assert (tmp_path / "q.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    again = json.loads((tmp_path / "q.json").read_text())
    time = {"startedOn": "2023-11-14T22:13:20Z", "finishedOn": "2023-11-14T22:13:20Z"}
    assert again["predicate"]["runDetails"].pop("metadata") == time
    assert again == content
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        merge(base, [adapter], tmp_path / "z", provenance=tmp_path / "z.json")


REFUSED: dict[str, tuple[Callable[[Path], Path], type[AdapterToolError]]] = {
    "exists": (lambda p: (p / "there.json", (p / "there.json").write_text("dear"))[0], OutputError),
    "link": (lambda p: (p / "link", (p / "link").symlink_to("nowhere"))[0], OutputError),
    "folder": (lambda p: p / "base/..", OutputError),
    "inside OUT": (lambda p: p / "out/p.json", UsageError),
    "OUT": (lambda p: p / "out", UsageError),
    "inside the base": (lambda p: p / "base/p.json", UsageError),
    "inside the adapter": (lambda p: p / "a/../a/p.json", UsageError),
    "no folder": (lambda p: p / "none/p.json", UsageError),
    "no path": (lambda p: p / "x\0y", UsageError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_provenance_that_cannot_be_written(tmp_path: Path, case: str) -> None:
    base, adapter = checkpoint(tmp_path / "base"), lora(tmp_path / "a")
    make, error = REFUSED[case]
    file = make(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(error):
        merge(base, [adapter], tmp_path / "out", provenance=file)
    assert snapshot(tmp_path) == before and not (tmp_path / "out").exists()


def test_provenance_of_the_longest_name(tmp_path: Path) -> None:
    base, adapter, file = checkpoint(tmp_path / "base"), lora(tmp_path / "a"), tmp_path / ("\U0001f9ca" * 63)
    merge(base, [adapter], tmp_path / "out", provenance=file)
    assert b"in-toto" in file.read_bytes()


def test_provenance_replaces_only_its_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a base that is one file stands a config, which is read."""
    base, adapter = checkpoint(tmp_path / "base", shards=1), lora(tmp_path / "a")
    out, file = tmp_path / "out.safetensors", tmp_path / "p.json"
    for number, text in enumerate([None, "", "[]", "{}", '{"predicate": 1}']):
        other = base / "config.json" if text is None else tmp_path / f"{number}.json"
        if text is not None:
            other.write_text(text)
        before = snapshot(tmp_path)
        with pytest.raises(OutputError, match="no provenance by adaptertool"):
            merge(base / "model.safetensors", [adapter], out, provenance=other, force=True)
        assert snapshot(tmp_path) == before
    merge(base, [adapter], tmp_path / "out", provenance=file)
    old = file.read_bytes()
    merge(base, [adapter], tmp_path / "out", weights=[0.5], provenance=file, force=True)
    assert b"in-toto" in file.read_bytes() and file.read_bytes() != old
    late = tmp_path / "late.json"  # comes while the run is at work
    monkeypatch.setattr("adaptertool.files.publish.publish", lambda *_, **__: late.write_text("dear"))
    with pytest.raises(StorageError, match="could not be put in place"):
        merge(base, [adapter], tmp_path / "out2", provenance=late)
    assert late.read_text() == "dear"


def test_provenance_is_there_only_with_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = checkpoint(tmp_path / "base"), lora(tmp_path / "a")
    real, file = os.link, tmp_path / "p.json"

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("adaptertool.files.publish.publish", fail)
        with pytest.raises(OSError):
            merge(base, [adapter], tmp_path / "out", provenance=file)
    assert not file.exists() and not (tmp_path / "out").exists()

    def not_that(source: Any, target: Any, **options: Any) -> None:
        (fail if os.fspath(target) == str(file) else real)(source, target, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", not_that)
        with pytest.raises(StorageError, match="OUT is complete, but the provenance") as caught:
            merge(base, [adapter], tmp_path / "out", provenance=file)
    assert "goes on" not in str(caught.value)
    assert check_files(tmp_path / "out").ok and not file.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base", "out"]
    assert real is os.link
