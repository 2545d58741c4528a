"""GLoRA of LyCORIS against rationals, through every command."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tensors, write_checkpoint
from one_kind import Formula, require_commands
from rationals import EVERY, Matrix
from safetensors.torch import save_file
from skews import times

import adaptertool
from adaptertool.errors import AdapterToolError, InputError, MismatchError, UnsupportedError

OUT, COLUMNS, RANK, ALPHA = 5, 6, 3, 0.7
ROLES = {"a1": (COLUMNS, RANK), "a2": (RANK, COLUMNS), "b1": (OUT, RANK), "b2": (RANK, COLUMNS)}


def exactly(tensor: torch.Tensor) -> Any:
    return np.frompyfunc(Fraction, 1, 1)(tensor.double().reshape(len(tensor), -1).numpy())


def formula_of(factors: Tensors, scale: float, points: int = 1) -> Formula:
    a1, a2, b1, b2 = (exactly(factors[f"lora_unet_l.{role}.weight"]) for role in ROLES)

    def formula(w: Matrix) -> Matrix:
        rows, turn = np.array(w), times(a1, a2)
        made = rows + Fraction(scale) * times(b1, b2)
        for point in range(points):
            made[:, point::points] += Fraction(scale) * times(rows[:, point::points], turn)
        return made.tolist()

    return formula


def save(path: Path, factors: Tensors, alpha: float | None = ALPHA, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {} if alpha is None else {"lora_unet_l.alpha": torch.tensor(alpha, dtype=torch.float64)}
    save_file(factors | own, path, metadata=metadata)
    return path


def random(dtype: torch.dtype = torch.float32, kernel: tuple[int, ...] = ()) -> Tensors:
    ones = [1] * len(kernel)
    shapes = {role: (*shape, *(kernel if role == "b2" else ones)) for role, shape in ROLES.items()}
    return {f"lora_unet_l.{role}.weight": (torch.randn(shape) / 2).to(dtype) for role, shape in shapes.items()}


@pytest.mark.long("kernel")
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("kernel", [(), (2,)])
def test_every_command(
    tmp_path: Path, dtype: torch.dtype, kernel: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = random(dtype, kernel)
    stored = {"l.weight": torch.randn(OUT, COLUMNS, *kernel).to(torch.bfloat16), "l.bias": torch.randn(OUT)}
    adapter = save(tmp_path / "a" / "a.safetensors", factors)
    formulas = {"l.weight": formula_of(factors, ALPHA / RANK, 2 if kernel else 1)}
    require_commands(tmp_path, stored, adapter, formulas, monkeypatch, lora=not kernel)


@pytest.mark.parametrize(
    ("change", "alpha", "metadata", "error"),
    [
        ({"a1": (COLUMNS, RANK + 1)}, ALPHA, {}, MismatchError),
        ({"a2": (RANK, OUT)}, ALPHA, {}, MismatchError),
        ({"b1": (COLUMNS, RANK)}, ALPHA, {}, MismatchError),
        ({"a2": (0, COLUMNS)}, ALPHA, {}, AdapterToolError),
        ({"bm": (RANK, RANK)}, ALPHA, {}, UnsupportedError),
        ({"b2": None}, ALPHA, {}, InputError),
        ({}, 0.0, {}, UnsupportedError),
        ({}, ALPHA, {"ss_network_args": json.dumps({"algo": "glora", "rs_lora": "True"})}, UnsupportedError),
        ({}, ALPHA, {"ss_network_args": json.dumps({"algo": "glora", "rs_lora": True})}, UnsupportedError),
    ],
)
def test_what_is_refused(
    tmp_path: Path, change: dict[str, Any], alpha: float, metadata: dict[str, str], error: type[Exception]
) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, COLUMNS)})
    factors = random()
    for role, shape in change.items():
        factors.pop(f"lora_unet_l.{role}.weight", None)
        if shape is not None:
            factors[f"lora_unet_l.{role}.weight"] = torch.ones(shape)
    adapter = save(tmp_path / "a.safetensors", factors, alpha, **metadata)
    with pytest.raises(error):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_metadata_that_says_no_is_read(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, COLUMNS)})
    said = json.dumps({"rs_lora": "False", "bypass_mode": "True"})
    adaptertool.merge(base, [save(tmp_path / "a.safetensors", random(), None, ss_network_args=said)], tmp_path / "out")
