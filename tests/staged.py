"""A small base with an adapter: their merge, and the folder in which it is staged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import lora_factors, write_adapter, write_checkpoint

from adaptertool import merge, prepare_merge
from adaptertool.files.hashing import DEFAULT
from adaptertool.files.place import staging_folder
from adaptertool.output.manifest import recipe_key

MODULE = "model.layers.0.mlp.up_proj"


class Place:
    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder, self.out = folder, folder / "out"
        tensors = {f"{MODULE}.weight": torch.randn(24, 16).bfloat16(), "model.norm.weight": torch.ones(16)}
        self.base = write_checkpoint(folder / "base", tensors, shards=2)
        (self.base / "sub").mkdir()
        (self.base / "sub/notes.txt").write_text("notes")
        self.adapter = write_adapter(folder / "adapter", lora_factors(MODULE, (24, 16)))

    def merge(self, **options: Any) -> None:
        merge(self.base, [self.adapter], options.pop("out", self.out), **options)

    @property
    def stage(self) -> Path:
        """Where a merge into OUT will work."""
        plan = prepare_merge(self.base, [self.adapter])
        return staging_folder(self.out, recipe_key(plan, DEFAULT))
