"""What kinds hold to that decompose the weight of the base: one layer, `l`, in every command, and by threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, same_bits, write_checkpoint
from one_kind import difference, require_commands
from rationals import Matrix

import adaptertool
from adaptertool.arithmetic import tiling

Layer = Callable[..., Path]  # (folder, out, in, ...) -> an adapter


def require_every_command(
    tmp_path: Path,
    one_layer: Layer,
    change_of: Callable[[Path, torch.Tensor], Matrix],
    dtypes: tuple[torch.dtype, torch.dtype],
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """dtypes: of the weight and of the factors"""
    weight, adapter = torch.randn(size).to(dtypes[0]), one_layer(tmp_path / "a", *size, dtype=dtypes[1])
    stored = {"l.weight": weight, "rest": torch.ones(3)}
    formulas = {"l.weight": difference(change_of(adapter, weight))}
    require_commands(tmp_path, stored, adapter, formulas, monkeypatch, lora=False)


def require_same_bytes_by_threads(
    tmp_path: Path, one_layer: Layer, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> None:
    """And by blocks. One of the three tensors is changed."""
    torch.manual_seed(1)
    stored = {f"{name}.weight": torch.randn(40, 30).to(dtype) for name in "lmn"}
    base, adapter = write_checkpoint(tmp_path / "base", stored), one_layer(tmp_path / "a", 40, 30, 9, **more)
    for threads in (1, 3):
        adaptertool.merge(base, [adapter], tmp_path / f"{threads}", threads=threads)
        monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 7 * 30)
    one, other = (load(tmp_path / f"{threads}") for threads in (1, 3))
    assert all(same_bits(tensor, other[name]) for name, tensor in one.items())
