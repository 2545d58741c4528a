"""What adapters change, by PEFT in float64, and the nearest matrix of a rank."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from layers import peft_merge
from torch import nn


def deltas(model: nn.Module, *adapters: Path) -> dict[str, torch.Tensor]:
    """What PEFT makes of it, in float64: W' − W by name."""
    before = copy.deepcopy(model).double().state_dict()
    return {name: tensor - before[name] for name, tensor in peft_merge(model, *adapters).items()}


def best(delta: torch.Tensor, rank: int) -> torch.Tensor:
    """Of a weight as the matrix that its factors describe, up to transposition."""
    flat = delta.flatten(1)
    left, values, right = torch.linalg.svd(flat, full_matrices=False)
    return (left[:, :rank] * values[:rank] @ right[:rank]).reshape(delta.shape)


def expected(model: nn.Module, adapters: Sequence[Path], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, delta in deltas(model, adapter).items():
            total[name] = total.get(name, 0) + weight * delta
    return total


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], bound: float) -> bool:
    """Beside the rounding of the oracle itself, W' − W in float64."""
    return all((found[name] - wanted[name]).norm() <= bound * wanted[name].norm() + 1e-13 for name in wanted)
