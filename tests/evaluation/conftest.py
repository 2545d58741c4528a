"""Models to evaluate, and prompts for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import FIXTURES
from models_on_prompts import FACTS, PROMPTS, fresh, save, with_adapter, write_lines
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained base in float32, the adapter merged into it by PEFT, and one merged wrongly; and prompts."""
    at = tmp_path_factory.mktemp("models")
    save(fresh(FIXTURES / "base"), at / "base")
    AutoTokenizer.from_pretrained(FIXTURES / "base").save_pretrained(at / "base")
    save(with_adapter(at / "base").merge_and_unload(), at / "merged")
    wrong = with_adapter(at / "base")
    for module in wrong.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] /= 2
    save(wrong.merge_and_unload(), at / "wrong")
    write_lines(at / "prompts", [{"prompt": prompt} for prompt in PROMPTS])
    write_lines(at / "facts", FACTS)
    return at
