"""The base that tests of formats plan with."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_checkpoint
from peft_files import BASE


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", BASE)
