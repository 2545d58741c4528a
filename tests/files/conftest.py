"""The small merge that tests of staging, of leftovers and of file systems disturb."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import snapshot, write_checkpoint
from opened import TENSORS
from staged import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """OUT, undisturbed: every file with its bytes."""
    good = Place(tmp_path_factory.mktemp("good"))
    good.merge()
    return snapshot(good.out)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", TENSORS)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", TENSORS, shards=2)
