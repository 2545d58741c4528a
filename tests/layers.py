"""A module with a layer of each kind, adapters that PEFT makes for it, and PEFT's merge in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from conftest import load, same_bits, write_checkpoint
from oracle import half_ulp_excess
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
LAYERS = ["linear", "turned", "embedding", "conv1", "conv2", "conv3"]


class Zoo(nn.Module):
    """One of each layer, no two sizes alike."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 20)
        self.turned = Conv1D(14, 10)  # stored (10, 14)
        self.embedding = nn.Embedding(33, 9)
        self.conv1 = nn.Conv1d(6, 8, 3)
        self.conv2 = nn.Conv2d(5, 7, (3, 2))
        self.conv3 = nn.Conv3d(3, 4, (1, 2, 3))
        self.rest = nn.LayerNorm(9)


def make_base(folder: Path, dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Module, Path]:
    zoo = Zoo().to(dtype)
    with torch.no_grad():
        for parameter in zoo.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 3)
    write_checkpoint(folder, {name: tensor.contiguous() for name, tensor in zoo.state_dict().items()})
    # No model of transformers: shapes alone tell
    (folder / "config.json").write_text('{"tie_word_embeddings": false}')
    return zoo, folder


def make_adapter(folder: Path, zoo: nn.Module, **config: Any) -> Path:
    tuned = get_peft_model(copy.deepcopy(zoo).float(), LoraConfig(**{"r": 3, "lora_alpha": 5} | config))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


def peft_merge(zoo: nn.Module, *adapters: Path, together: bool = False) -> dict[str, torch.Tensor]:
    """PEFT's merge in float64: one adapter after the other, or all of them together."""
    model: Any = copy.deepcopy(zoo).double()
    if together:
        names = [f"adapter{number}" for number in range(len(adapters))]
        model = PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0])
        for name, adapter in zip(names[1:], adapters[1:], strict=True):
            model.load_adapter(adapter, adapter_name=name)
        return model.double().merge_and_unload(adapter_names=names).state_dict()
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).double().merge_and_unload()
    return model.state_dict()


def check(base: Path, out: Path, exact: dict[str, torch.Tensor], edited: int | None, half_ulps: float = 1) -> None:
    """edited: how many tensors must differ from the base; None: one at least"""
    before, after = load(base), load(out)
    assert before.keys() == after.keys()
    changed = 0
    for name, tensor in after.items():
        if exact[name].equal(before[name].double()):
            assert same_bits(tensor, before[name]), name
        else:
            changed += 1
            assert half_ulp_excess(tensor, exact[name]).max() <= half_ulps + 1e-6, name
    assert changed == (edited or changed) > 0


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attn(x, x, x)[0])
