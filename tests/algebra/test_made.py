"""Factors that lie in no file, but are made of such that do, in adapters that are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load, write_adapter, write_checkpoint
from peft_files import UNTIED

import adaptertool

L = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("command", ["sum", "sum of two", "truncate", "cut"])
def test_adalora_becomes_lora(tmp_path: Path, command: str, dtype: torch.dtype) -> None:
    a, b, e = (torch.randn(shape, dtype=dtype) for shape in ((4, 6), (8, 4), (4, 1)))
    base = write_checkpoint(tmp_path / "base", {f"{L}.weight": torch.zeros(8, 6)}, config=UNTIED)
    factors = {f"{L}.lora_A": a, f"{L}.lora_B": b, f"{L}.lora_E": e}
    fields = {"peft_type": "ADALORA", "init_r": 4, "lora_alpha": 8}
    adapter, out = write_adapter(tmp_path / "a", factors, **fields), tmp_path / "out"
    if command.startswith("sum"):
        adaptertool.sum_adapters([adapter] * (2 if command == "sum of two" else 1), out)
    else:
        adaptertool.truncate(adapter, out, rank=4 if command == "truncate" else 2)
    times = 2 if command == "sum of two" else 1
    exact = (b.double() @ (a.double() * e.double())).numpy() * (8 / (4 + 1e-5)) * times
    if command == "cut":
        u, s, v = np.linalg.svd(exact)
        exact = (u[:, :2] * s[:2]) @ v[:2]
    adaptertool.merge(base, [out], tmp_path / "merged")
    np.testing.assert_allclose(load(tmp_path / "merged")[f"{L}.weight"].double(), exact, rtol=1e-5, atol=1e-5)
