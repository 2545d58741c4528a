"""Models that were tuned, as checkpoints, and what the tuning changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from conftest import load, write_checkpoint
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

TINY = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 50, "max_position_embeddings": 16,
}  # fmt: skip
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 16}


def model_of(family: str, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    config = AutoConfig.for_model(family, **((GPT2 if family == "gpt2" else TINY) | fields))
    return AutoModelForCausalLM.from_config(config).to(dtype)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def tune(model: Any, pattern: str = "", size: float = 0.02) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(pattern, name):
                parameter += size * torch.randn_like(parameter)


def deltas(base: Path, tuned: Path) -> dict[str, torch.Tensor]:
    before, after = load(base), load(tuned)
    return {name: after[name].double() - tensor.double() for name, tensor in before.items()}


def in_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """W' − W by name, as PEFT merges it, in float64."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    return {name: after[name] - tensor for name, tensor in before.items()}


def write_pair(folder: Path, base: dict[str, Any], tuned: dict[str, Any], **config: Any) -> tuple[Path, Path]:
    return (
        write_checkpoint(folder / "base", base, config=config or None),
        write_checkpoint(folder / "tuned", tuned, config=config or None),
    )


EYE, ZERO, TEN = torch.eye(4), torch.zeros(4, 4), torch.arange(10)
