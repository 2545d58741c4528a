"""The curve that tests of scoring run."""

from __future__ import annotations

from pathlib import Path

import pytest
from curves import Place
from markupsafe import Markup

from adaptertool.render import curve_page


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Of the page the pictures are left out: tests/render draws them, and so do the curves of the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curve_page, "figure", lambda *_, **__: Markup("<svg></svg>"))
    return Place(tmp_path)
