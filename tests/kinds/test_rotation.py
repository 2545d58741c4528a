"""Rotations against rationals: every element the correct rounding, whatever the blocks, stages, orders and dtypes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load
from rationals import EVERY, matrix, require
from rotations import Rotation, exactly, placed, random, rotated, turned, use_rotations

import adaptertool

GPT2 = {"model_type": "gpt2", "tie_word_embeddings": False}
every_output = pytest.mark.parametrize("output", EVERY)


@pytest.fixture(autouse=True)
def rotations(monkeypatch: pytest.MonkeyPatch) -> None:
    use_rotations(monkeypatch)


def base_of(rows: int, columns: int, output: torch.dtype) -> torch.Tensor:
    """With zeros of both signs."""
    base = (torch.randn(rows, columns, dtype=torch.float64) / 8).to(output)
    base[0, :2], base[1] = -0.0, 0.0
    return base


@every_output
@pytest.mark.parametrize("weight", [1.0, 0.5, -1.0, 0.0])
@pytest.mark.parametrize(("wide", "stages", "mixed"), [(1, 1, False), (2, 3, True), (8, 2, True), (32, 1, False)])
def test_every_element_is_the_rounding_of_the_formula(
    tmp_path: Path, output: torch.dtype, weight: float, wide: int, stages: int, *, mixed: bool
) -> None:
    rotation, base = random(wide, 32, wide, stages, mixed=mixed), base_of(5, 32, output)
    checkpoint, adapters = placed(tmp_path, base, rotation)
    adaptertool.merge(checkpoint, adapters, tmp_path / "out", weights=[weight])
    require(load(tmp_path / "out")["x.weight"], rotated(matrix(base), rotation, weight), base)
