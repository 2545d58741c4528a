"""The base with an adapter beside which candidates are judged."""

from __future__ import annotations

from pathlib import Path

import pytest
from candidates import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
