"""A base with each sort of tensor, adapters for it, and what a plan makes of them or why it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tensors, lora_factors, write_adapter, write_checkpoint

from adaptertool.errors import AdapterToolError, InputError
from adaptertool.spec.plan import Edit
from adaptertool.tasks.merge import prepare_merge

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
BASE = {
    f"{Q}.weight": torch.zeros(8, 6), f"{Q}.bias": torch.zeros(8), f"{K}.weight": torch.zeros(8, 6),
    "model.layers.0.norm.weight": torch.zeros(6), "model.conv.weight": torch.zeros(4, 4, 3),
    "model.embed_tokens.weight": torch.zeros(10, 6), "lm_head.weight": torch.zeros(10, 6),
    "score.weight": torch.zeros(12, 6), "x+y.weight": torch.zeros(8, 6), "block.c_proj.weight": torch.zeros(6, 6),
}  # fmt: skip
UNTIED = {"model_type": "llama", "tie_word_embeddings": False}


def adapter(base: Path, tensors: Tensors | None = None, **config: Any) -> Path:
    return write_adapter(base.parent / "adapter", lora_factors(Q, (8, 6)) if tensors is None else tensors, **config)


def edits(base: Path, adapter: Path) -> dict[str, tuple[Edit, ...]]:
    plan = prepare_merge(base, [adapter])
    return {step.base.spec.name: step.edits for shard in plan.shards for step in shard.steps if step.edits}


def refusal(base: Path, adapter: Path, kind: type[AdapterToolError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        prepare_merge(base, [adapter])
    message = str(caught.value)
    assert all(line.isprintable() for line in message.split("\n"))
    return message


def base_of(folder: Path, config: Mapping[str, Any] | None, tensors: Tensors | None = None) -> Path:
    base = write_checkpoint(folder / "base", tensors or BASE, config=config or {})
    if config is None:
        (base / "config.json").unlink()
    return base


C_PROJ = lora_factors("block.c_proj", (6, 6))
