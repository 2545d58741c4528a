"""A merge and its verdict do not rest on the same code alone: a kernel that is wrong is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import lora_factors, write_adapter, write_checkpoint

import adaptertool
from adaptertool.arithmetic import fused, stretch
from adaptertool.numerics.compiled import FUNCTIONS


@pytest.mark.skipif(not FUNCTIONS, reason="the kernel was not compiled")
@pytest.mark.parametrize("dora", [False, True])
def test_a_kernel_that_is_wrong_is_found_out(*, dora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    shape = 700, 600  # too large for a stretch of small tensors
    write_checkpoint(tmp_path / "base", {"a.weight": torch.randn(shape).bfloat16()})
    factors = lora_factors("a", shape) | ({"a.lora_magnitude_vector": torch.rand(700) + 20} if dora else {})
    write_adapter(tmp_path / "lora", factors, r=4, lora_alpha=4, target_modules=["a"], use_dora=dora)
    make, calls = fused.Products.make, list[int]()

    def wrong(self: fused.Products, stored: Any, first: int, alphas: Any, out: Any) -> Any:
        made = make(self, stored, first, alphas, out)
        calls.append(first)
        assert made is not None
        for one in out:
            one ^= np.uint16(64)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(fused.Products, "make", wrong)
        adaptertool.merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
        report = adaptertool.verify(tmp_path / "out", tmp_path / "base", [tmp_path / "lora"])
    assert calls
    assert report.verdict == "wrong"


@pytest.mark.skipif(not FUNCTIONS, reason="the kernel was not compiled")
@pytest.mark.parametrize(("count", "shape"), [(5, (6, 8)), (2, (200, 300))])
def test_so_it_is_where_small_tensors_are_made_together(
    count: int, shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    names = [f"model.layers.{number}.a" for number in range(count)]
    write_checkpoint(tmp_path / "base", {f"{name}.weight": torch.randn(shape).bfloat16() for name in names})
    factors = {key: factor for name in names for key, factor in lora_factors(name, shape).items()}
    write_adapter(tmp_path / "lora", factors, r=4, lora_alpha=4, target_modules=["a"])
    make, calls = stretch.add_products, list[int]()

    def wrong(stored: Any, dtype: str, tensors: Any, products: Any, read: Any, alphas: Any, out: Any) -> Any:
        made = make(stored, dtype, tensors, products, read, alphas, out)
        calls.append(len(tensors))
        for one in out:
            one ^= np.uint16(64)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(stretch, "add_products", wrong)
        adaptertool.merge(tmp_path / "base", [tmp_path / "lora"], tmp_path / "out")
        report = adaptertool.verify(tmp_path / "out", tmp_path / "base", [tmp_path / "lora"])
    assert calls[:2] == [count, count]  # those that look for what is wrong come later
    assert report.verdict == "wrong"
    assert report.summary.wrong == count
