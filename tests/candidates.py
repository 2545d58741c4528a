"""A base with an adapter, and candidates that `verify` judges beside them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import write_adapter, write_checkpoint

from adaptertool.tasks.verify import verify

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
Q, K, UP, NORM, EMBED = "layers.0.q.weight", "layers.0.k.weight", "layers.0.up.weight", "norm.weight", "embed.weight"
Q1, K1, UP1 = (name.replace(".0.", ".1.") for name in (Q, K, UP))
SHAPES = {Q: (64, 64), K: (32, 64), UP: (128, 64), Q1: (64, 64), K1: (32, 64), UP1: (128, 64)}
Tensors = dict[str, torch.Tensor]


def a_base(dtype: torch.dtype, seed: int = 0) -> Tensors:
    torch.manual_seed(seed)
    tensors = {name: (torch.randn(shape) * 0.05).to(dtype) for name, shape in SHAPES.items()}
    tensors[EMBED] = torch.randn(96, 64).to(dtype)
    tensors[NORM] = (1 + 0.1 * torch.randn(64)).to(dtype)
    return tensors


def factors_of(seed: int, rank: int = 4, size: float = 0.05, dtype: torch.dtype = F32) -> Tensors:
    torch.manual_seed(seed)
    factors = {}
    for name, (out, inner) in SHAPES.items():
        module = name.removesuffix(".weight")
        factors[f"{module}.lora_A.weight"] = (torch.randn(rank, inner) * size).to(dtype)
        factors[f"{module}.lora_B.weight"] = (torch.randn(out, rank) * size).to(dtype)
    return factors


def delta(factors: Mapping[str, torch.Tensor], name: str, scale: float = 2.0) -> torch.Tensor:
    module = name.removesuffix(".weight")
    b, a = (factors[f"{module}.lora_{letter}.weight"].double() for letter in "BA")
    return scale * b @ a


def naive(base: Tensors, factors: Tensors, scale: float = 2.0) -> Tensors:
    """As a right script merges: in float32, rounded once."""
    merged = dict(base)
    for name in SHAPES:
        merged[name] = (base[name].float() + delta(factors, name, scale).float()).to(base[name].dtype)
    return merged


class Place:
    """A base with an adapter, and room for candidates."""

    def __init__(self, root: Path, dtype: torch.dtype = BF16, **config: Any) -> None:
        self.root, self.tensors, self.factors = root, a_base(dtype), factors_of(1)
        self.base = write_checkpoint(root / "base", self.tensors)
        self.adapter = write_adapter(root / "adapter", self.factors, **config)

    def judge(self, tensors: Tensors, *adapters: Path, config: Any = None, shards: int = 1, **options: Any) -> Any:
        merged = self.root / "merged"
        shutil.rmtree(merged, ignore_errors=True)
        write_checkpoint(merged, {name: t.contiguous() for name, t in tensors.items()}, shards=shards, config=config)
        return verify(merged, self.base, adapters or [self.adapter], threads=1, **options)


def verdict(report: Any, name: str) -> Any:
    return next(tensor for tensor in report.tensors if tensor.name == name)
