"""The curve that tests of scoring run."""

from __future__ import annotations

from pathlib import Path

import pytest
from curves import Place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)
