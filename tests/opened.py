"""Checkpoints to open, and why they are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptertool.errors import InputError
from adaptertool.files.checkpoint import INDEX, Checkpoint
from adaptertool.formats.checkpoints import open_checkpoint

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {name: torch.full((2, 3), float(number)) for number, name in enumerate("abcd")}  # a, c | b, d


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.isprintable()
    return message


def edit_index(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((root / INDEX).read_text())
    change(index)
    (root / INDEX).write_text(json.dumps(index))


def asset_names(checkpoint: Checkpoint) -> set[str]:
    return {asset.name for asset in checkpoint.assets}


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
