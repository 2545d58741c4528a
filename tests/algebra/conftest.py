"""A base and what was tuned from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tuned_models import model_of, saved, tune


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and what was tuned from it, all of it."""
    model = model_of("llama", tie_word_embeddings=False)
    base = saved(model, tmp_path / "base")
    tune(model)
    return base, saved(model, tmp_path / "tuned")
