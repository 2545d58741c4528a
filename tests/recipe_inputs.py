"""What the fixed recipes (`tests/recipes.py`) are made of beside the fixtures. It needs torch, so it stands alone: to
import that takes longer than all the recipes together, and those run in many processes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).parent.parent / "fixtures"
LORA = FIXTURES / "lora"


def checkpoint(folder: Path, source: Path, dtype: torch.dtype) -> Path:
    """A fixture as one file, cast: by a rounding that every processor makes alike."""
    folder.mkdir()
    tensors = {name: t.to(dtype) for file in source.glob("*.safetensors") for name, t in load_file(file).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((source / "config.json").read_text())
    return folder


def adapter(folder: Path, dtype: torch.dtype, *, dora: bool = False) -> Path:
    """The LoRA of the fixtures in another dtype, or with magnitudes that are small fractions."""
    folder.mkdir()
    tensors = {name: t.to(dtype) for name, t in load_file(LORA / "adapter_model.safetensors").items()}
    config = json.loads((LORA / "adapter_config.json").read_text()) | {"use_dora": dora}
    for name, factor in list(tensors.items()) if dora else ():
        if name.endswith(".lora_B.weight"):
            magnitude = 0.5 + torch.arange(factor.shape[0]) % 7 / 8
            tensors[name.replace(".lora_B.weight", ".lora_magnitude_vector")] = magnitude.to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def make_inputs(folder: Path) -> Path:
    """All of them, in a new folder."""
    folder.mkdir()
    checkpoint(folder / "f16", FIXTURES / "base", torch.float16)
    checkpoint(folder / "f32", FIXTURES / "base", torch.float32)
    checkpoint(folder / "tuned-f32", FIXTURES / "tuned", torch.float32)
    adapter(folder / "narrow", torch.bfloat16)
    adapter(folder / "dora", torch.float32, dora=True)
    return folder
