"""The merge that tests of this folder disturb, what it makes undisturbed, and files in many parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import snapshot
from disturbed import Place

from adaptertool.arithmetic import tiling
from adaptertool.files import hashing


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
