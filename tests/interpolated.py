"""Adapters of `wise --as-adapter`, merged beside the interpolation itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from conftest import load, same_bits
from peft import LoraConfig, get_peft_model
from torch import nn

import adaptertool

U = 2.0**-24


def closed(tmp_path: Path, base: Path, adapter: Path, alpha: str = "0.4") -> int:
    """OUT merged is the interpolation, to what float32 factors hold; how many tensors it changes."""
    adaptertool.wise(base, adapter, tmp_path / "out", alpha, as_adapter=True)
    adaptertool.merge(base, [tmp_path / "out"], tmp_path / "merged")
    adaptertool.wise(base, adapter, tmp_path / "wise", alpha)
    before, ours, wise = load(base), load(tmp_path / "merged"), load(tmp_path / "wise")
    changed = 0
    for name, tensor in wise.items():
        if same_bits(tensor, before[name]):
            assert same_bits(ours[name], tensor)
        else:
            changed += 1
            assert (ours[name] - tensor).norm() <= 2 * U * tensor.norm(), name
            assert (tensor - before[name]).norm() > 1e-3 * tensor.norm(), name
    return changed


def train(folder: Path, model: nn.Module, **config: Any) -> Path:
    """An adapter of PEFT's whose magnitudes stay near the norms, so that no alpha of ALPHAS takes them below 0."""
    tuned = get_peft_model(copy.deepcopy(model).float(), LoraConfig(**{"r": 3, "lora_alpha": 5} | config))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and "magnitude" in name:
                parameter.mul_(1 + torch.randn(parameter.shape) / 16)
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 32)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder
