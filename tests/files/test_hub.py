"""Names of the hub in its local cache, which huggingface_hub judges: what it finds without a network is found."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from conftest import adaptertool
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from manifests import MANIFEST, checkpoint, lora

import adaptertool as product
from adaptertool.errors import InputError
from adaptertool.files.checkpoint import open_checkpoint
from adaptertool.files.hub import cache, called, find, kept_as

MAIN, OLD, LOST = "a" * 40, "0123456789" * 4, "f" * 40


def commit(root: Path, source: Path, sha: str, *refs: str) -> Path:
    """What a download leaves: blobs, links to them, and names of the commit."""
    snapshot = root / "snapshots" / sha
    for file in (path for path in source.rglob("*") if path.is_file()):
        link, blob = snapshot / file.relative_to(source), root / "blobs" / f"{sha[:4]}-{file.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    for ref in refs:
        (root / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (root / "refs" / ref).write_text(sha)
    return snapshot


@pytest.fixture
def made(tmp_path: Path) -> Path:
    base = checkpoint(tmp_path / "made", shards=1)
    (base / "tokenizer.json").write_text("{}")
    (lora(tmp_path / "lora") / "README.md").write_text("a LoRA")
    return tmp_path


@pytest.fixture
def hub(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, with org/base at two commits and someone/lora at one; and an empty folder to stand in."""
    where, here = made / "hub", made / "here"
    commit(where / "models--org--base", made / "made", OLD, "v1.0", "refs/pr/1", "feature/x")
    commit(where / "models--org--base", made / "made", MAIN, "main")
    (where / "models--org--base" / "refs" / "lost").write_text(LOST)
    commit(where / "models--someone--lora", made / "lora", OLD, "main")
    commit(where / "models--old", made / "made", MAIN, "main")
    here.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(where))
    monkeypatch.chdir(here)
    return where


def judged(where: Path, repository: str, revision: str | None) -> str | None:
    try:
        return snapshot_download(repository, revision=revision, cache_dir=where, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


@pytest.mark.parametrize(
    "repository", ["org/base", "someone/lora", "old", "org/none", "org--base", "../hub/x", "org/b.."]
)
def test_what_huggingface_hub_finds_is_found(hub: Path, repository: str) -> None:
    for revision in (None, "main", "v1.0", "refs/pr/1", "feature/x", MAIN, OLD, LOST, "lost", MAIN[:7]):
        name = repository if revision is None else f"{repository}@{revision.replace('feature/', 'feature%2F')}"
        expected = judged(hub, repository, revision)
        try:
            found = find(name)
        except InputError as error:
            found = None
            assert f"hf download {repository}" in str(error)
            assert OLD in str(error) or MAIN in str(error)
        assert (None if found is None else str(found)) == expected, name


@pytest.mark.parametrize("inside", ["config.json", "adapter_config.json", "none.json"])
def test_a_file_of_a_repository(hub: Path, inside: str) -> None:
    for repository in ("org/base", "someone/lora"):
        expected = try_to_load_from_cache(repository, inside, cache_dir=hub)
        if isinstance(expected, str):
            assert str(find(f"{repository}/{inside}")) == expected
        else:
            with pytest.raises(InputError, match=f"hf download {repository} {inside}"):
                find(f"{repository}/{inside}")


@pytest.mark.usefixtures("hub")
def test_what_is_no_name_is_a_path() -> None:
    for name in ("./org/base", "org/base/", "/org/base", "org//base", "org/base@", ""):
        assert find(name) is None, name
    with pytest.raises(InputError):
        find("org/base/../base")


@pytest.mark.usefixtures("hub")
def test_what_is_called_so_here_comes_first() -> None:
    Path("org").mkdir()
    Path("org/base").symlink_to("nothing")
    assert find("org/base") is None


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"HF_HUB_CACHE": "/a/b"},
        {"HUGGINGFACE_HUB_CACHE": "/c"},
        {"HF_HUB_CACHE": "$HOME/x", "HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": "/d"},
        {"HF_HOME": "~/hf"},
        {"HF_HOME": "$SOMEWHERE/hf", "SOMEWHERE": "/e"},
        {"XDG_CACHE_HOME": "/f"},
        {"HF_HUB_CACHE": "~/x"},
    ],
)  # fmt: skip
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    # run and not imported, since it reads the environment but once
    judge = runpy.run_path(str(constants.__file__), run_name="huggingface_hub.constants")
    assert str(cache()) == judge["HF_HUB_CACHE"]


def test_a_folder_of_the_cache_is_its_main_revision(hub: Path) -> None:
    root = hub / "models--org--base"
    assert find(str(root)) == root / "snapshots" / MAIN
    (root / "refs" / "main").unlink()
    assert find(str(root)) is None  # and the error names its snapshots


def test_what_they_are_called(hub: Path, tmp_path: Path) -> None:
    snapshot = hub / "models--org--base" / "snapshots" / OLD
    for path in (snapshot, snapshot / "config.json"):
        assert find(called(path)) == path
    (tmp_path / "link").symlink_to(snapshot)
    assert called(tmp_path / "link") == kept_as(tmp_path / "link") == f"org/base@{OLD}"
    assert called(tmp_path / "made") == str(tmp_path / "made")
    assert kept_as(tmp_path / "made") == "made"


@pytest.mark.usefixtures("hub")
def test_a_merge_by_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are those of the folders; report and manifest name repositories and commits, and no path."""
    monkeypatch.setattr(socket, "socket", None)
    report = product.merge("org/base", ["someone/lora"], tmp_path / "named")
    product.merge(tmp_path / "made", [tmp_path / "lora"], tmp_path / "plain")
    assert report.base == f"org/base@{MAIN}"
    assert report.sources == (f"someone/lora@{OLD}",)
    manifests: list[dict[str, Any]] = [
        json.loads((tmp_path / out / MANIFEST).read_text()) for out in ("named", "plain")
    ]
    recipe = manifests[0].pop("recipe")
    assert (recipe["base"], recipe["sources"][0]["name"]) == (f"org/base@{MAIN}", f"someone/lora@{OLD}")
    assert manifests[1].pop("recipe")["base"] == "made"
    assert manifests[0] == manifests[1]
    assert str(tmp_path) not in (tmp_path / "named" / MANIFEST).read_text()


@pytest.mark.usefixtures("hub")
def test_every_command_takes_names(tmp_path: Path) -> None:
    merged = tmp_path / "m"
    for arguments in (
        ("merge", "org/base@v1.0", "someone/lora@main", "-o", merged),
        ("wise", "org/base", "someone/lora", "--alpha", "0.5", "-o", tmp_path / "w"),
        ("verify", merged, "org/base", "someone/lora"),
        ("diff", "org/base", f"org/base@{OLD}"),
        ("inspect", "someone/lora", "--base", "org/base"),
        ("drift", "org/base", "someone/lora"),
        ("sum", "someone/lora", "someone/lora", "-o", tmp_path / "s", "--base", "org/base"),
        ("truncate", "someone/lora", "--rank", "1", "-o", tmp_path / "t"),
        ("extract", "org/base", merged, "--rank", "2", "-o", tmp_path / "e"),
    ):
        done = adaptertool(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    assert json.loads((tmp_path / "e" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"


@pytest.mark.usefixtures("hub")
def test_a_name_that_is_nowhere() -> None:
    for arguments in (("org/none", "someone/lora"), ("org/base", "someone/none"), ("org/base@v2", "someone/lora")):
        done = adaptertool("merge", *arguments, "-o", "out")
        assert done.returncode == 3
        assert "hf download" in done.stderr
        assert not Path("out").exists()


# What a download that was cut off leaves.


def test_a_shard_that_is_not_there_yet(hub: Path, tmp_path: Path) -> None:
    sharded = checkpoint(tmp_path / "sharded", shards=2)
    snapshot = commit(hub / "models--org--cut", sharded, MAIN, "main")
    (hub / "models--org--cut" / "blobs" / "1234.incomplete").write_bytes(b"")
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"is missing.*`hf download org/cut` brings the rest; a download of it was cut off"
    ):
        product.merge("org/cut", ["someone/lora"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("there", ["config.json", "tokenizer.json"])
def test_a_config_without_weights(hub: Path, tmp_path: Path, there: str) -> None:
    """As asking for the config alone leaves it."""
    (tmp_path / "some").mkdir()
    shutil.copy(tmp_path / "made" / there, tmp_path / "some")
    commit(hub / "models--org--some", tmp_path / "some", OLD, "v1.0")
    with pytest.raises(InputError, match=f"hf download org/some --revision {OLD}` brings the rest"):
        product.merge("org/some@v1.0", ["someone/lora"], tmp_path / "out")
    with pytest.raises(InputError, match=f"hf download org/some --revision {OLD}` brings the rest"):
        product.merge("org/base", ["org/some@v1.0"], tmp_path / "out")


def notes_of(hub: Path) -> list[str]:
    return [
        note for note in open_checkpoint(hub / "models--org--base" / "snapshots" / MAIN).notes if "hf download" in note
    ]


def test_files_that_the_repository_has_beside(hub: Path) -> None:
    root = hub / "models--org--base"
    assert notes_of(hub) == []
    names = ["config.json", "merges.txt", "README.md", ".gitattributes", "pytorch_model.bin", "onnx/model.onnx"]
    (root / "trees").mkdir()
    listing = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "x"} for name in names}}
    (root / "trees" / f"{MAIN}.json").write_text(json.dumps(listing))
    (note,) = notes_of(hub)
    assert f"org/base@{MAIN} has it: merges.txt; " in note
    for damaged in ("", "[]", '{"files": []}'):
        (root / "trees" / f"{MAIN}.json").write_text(damaged)
        assert notes_of(hub) == []
    (root / "snapshots" / MAIN / "tokenizer.json").unlink()
    (note,) = notes_of(hub)
    assert "there is no tokenizer" in note
