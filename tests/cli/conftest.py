"""Inputs of commands, and a merge of the fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import BASE, LORA, MODULE, Result
from conftest import adaptertool, lora_factors, write_adapter, write_checkpoint


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of two shards and its adapter."""
    tensors = {f"{MODULE}.weight": torch.randn(8, 6).bfloat16(), "model.norm.weight": torch.ones(6)}
    base = write_checkpoint(tmp_path / "base", tensors, shards=2)
    return base, write_adapter(tmp_path / "adapter", lora_factors(MODULE, (8, 6)))


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A good run, with JSON, that others look at."""
    out = tmp_path_factory.mktemp("merged") / "out"
    return out, adaptertool("merge", BASE, LORA, "-o", out, "--json")
