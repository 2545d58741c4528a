"""A base of four shards of different sizes, adapters, and another checkpoint: to be merged in parts."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import lora_factors, write_adapter, write_checkpoint

NAMES = [f"model.layers.{number}.mlp.up_proj" for number in range(5)]


class Place:
    """A base of four shards of different sizes, adapters, and another checkpoint."""

    def __init__(self, folder: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        self.folder, self.out, self.file = folder, folder / "out", folder / "plan.json"
        tensors = {
            f"{name}.weight": torch.randn(16 + 8 * number, 16, generator=generator).bfloat16()
            for number, name in enumerate(NAMES)
        }
        tensors["model.norm.weight"] = torch.ones(16)
        self.base = write_checkpoint(folder / "base", tensors, shards=4)
        (self.base / "sub").mkdir()
        (self.base / "sub/notes.txt").write_text("notes")
        other = {name: (value.float() * 1.25 + 0.5).to(value.dtype) for name, value in tensors.items()}
        self.tuned = write_checkpoint(folder / "tuned", other, shards=2)
        self.fisher = [
            write_checkpoint(folder / f"f{number}", {name: value.abs() for name, value in other.items()}, shards=3)
            for number in range(2)
        ]
        torch.manual_seed(1)
        self.adapters = [
            write_adapter(
                folder / f"adapter{number}",
                {
                    key: one
                    for row, name in enumerate(NAMES)
                    for key, one in lora_factors(name, (16 + 8 * row, 16)).items()
                },
            )
            for number in range(2)
        ]


def factors() -> dict[str, torch.Tensor]:
    return {key: one for row, name in enumerate(NAMES) for key, one in lora_factors(name, (16 + 8 * row, 16)).items()}
