"""The merge that tests of this folder disturb, what it makes undisturbed, files in many parts, and a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import snapshot
from disturbed import Place
from fake_store import FakeS3, served

from adaptertool.arithmetic import tiling
from adaptertool.files import bucket, hashing, objects


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeS3]:
    """A store, and nothing left behind in the folder for what is temporary."""
    pytest.importorskip("obstore")
    monkeypatch.setattr(bucket, "_RETRIES", 2)
    bucket._client.cache_clear()
    objects.forget()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    yield from served(monkeypatch)
    assert not list((tmp_path / "scratch").iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run with nothing wrong makes of the same inputs."""
    torch.manual_seed(0)
    good = Place(tmp_path_factory.mktemp("good"))
    good.merge()
    return snapshot(good.out)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these small files have many parts, which come out of order."""
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 160)
    monkeypatch.setattr(hashing, "_PIECE", 192)
