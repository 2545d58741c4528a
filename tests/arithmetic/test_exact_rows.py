"""Norms of rows, and of columns, in one chain of edits, all of whose elements are settled one by one."""

from __future__ import annotations

import decimal
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load
from safetensors.torch import save_file

import adaptertool
from adaptertool.arithmetic import exact_norms
from adaptertool.arithmetic.correct_rounding import OpenElements
from adaptertool.errors import UnsupportedError

SHAPES = [(4, 6), (3, 4, 2, 1)]
Chain = Sequence[str]
CHAINS: list[Chain] = [["columns"], ["lora", "columns"], ["columns", "lora"], ["columns", "rows"], ["rows", "columns"],
    ["rows", "lora", "columns", "columns"], ["oft", "rows"], ["rows", "oft"]]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is stored as float64 floats decide nothing; nor do double-double and long numbers here."""
    for stage in ("_by_pairs", "_by_digits"):
        monkeypatch.setattr(OpenElements, stage, lambda _, left, *__: left)


def exact(tensor: torch.Tensor) -> Any:
    return np.frompyfunc(Decimal, 1, 1)(tensor.double().numpy())


def change(path: Path, kind: str, shape: tuple[int, ...]) -> tuple[Path, Any]:
    """An adapter, and what it makes of a weight (out, in, points): Decimals."""
    out, inputs, points = shape[0], shape[1], int(np.prod(shape[2:]))
    if kind == "oft":  # blocks of one number turn nothing
        scales = torch.randn(out, *[1] * (len(shape) - 1))
        saved = {"oft_blocks": torch.randn(out, 1, 1), "rescale": scales, "alpha": torch.tensor(0.0)}
        save_file({f"lora_unet_l.{key}": tensor for key, tensor in saved.items()}, path)
        return path, lambda w: w * exact(scales).reshape(-1, 1, 1)
    down, up = torch.randn(2, *shape[1:]), torch.randn(out, 2, *[1] * (len(shape) - 2))
    saved = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    delta = (exact(up).reshape(out, 2) @ exact(down).reshape(2, -1)).reshape(out, inputs, points)
    axis = {"rows": 0, "columns": 1, "lora": None}[kind]
    scales = torch.rand([length if place == axis else 1 for place, length in enumerate(shape)])
    if axis is not None:
        saved["dora_scale"] = scales
    save_file({f"lora_unet_l.{key}": tensor for key, tensor in saved.items()}, path)

    def made(w: Any) -> Any:
        v = w + delta
        if axis is None:
            return v
        squares = (v * v).sum(axis=(1 - axis, 2), keepdims=True)
        return exact(scales).reshape(squares.shape) * v / np.frompyfunc(Decimal.sqrt, 1, 1)(squares)

    return path, made


def write(folder: Path, chain: Chain, shape: tuple[int, ...]) -> tuple[Path, list[Path], Any]:
    base = folder / "base.safetensors"
    weight = torch.randn(shape, dtype=torch.float64)
    save_file({"l.weight": weight}, base)
    made, adapters = exact(weight).reshape(*shape[:2], -1), []
    for number, kind in enumerate(chain):
        path, formula = change(folder / f"{number}.safetensors", kind, shape)
        made, adapters = formula(made), [*adapters, path]
    return base, adapters, made


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_chains(tmp_path: Path, chain: Chain, shape: tuple[int, ...]) -> None:
    with decimal.localcontext(prec=120):
        base, adapters, made = write(tmp_path, chain, shape)
        adaptertool.merge(base, adapters, tmp_path / "out.safetensors")
        expected = made.astype(np.float64).reshape(shape)
    assert load(tmp_path / "out.safetensors")["l.weight"].numpy().tolist() == expected.tolist()


def test_large_ones_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_norms, "_MOST", 23)
    base, adapters, _ = write(tmp_path, ["rows", "columns"], SHAPES[0])
    with pytest.raises(UnsupportedError, match=r"l.weight: an element needs exact arithmetic.* merge one, then the"):
        adaptertool.merge(base, adapters, tmp_path / "out.safetensors")


def test_terms_with_a_root_that_cancel_are_refused_by_name(tmp_path: Path) -> None:
    """(W + Δ)·m/‖W + Δ‖ + A·that is 0 where A is −1, but no number of bits tells."""
    base, adapters, _ = write(tmp_path, ["rows"], (4, 6))
    glora = {"glora_A.X": -torch.ones(1), "glora_B.X": torch.zeros(1)}
    glora |= {"glora_C.zeros": torch.zeros(6, 1), "glora_D.zeros": torch.zeros(4), "glora_E.zeros": torch.zeros(4)}
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "adapter_config.json").write_text(json.dumps({"peft_type": "GLORA", "r": 4}))
    named = {f"base_model.model.l.{role}": tensor for role, tensor in glora.items()}
    save_file(named, tmp_path / "g" / "adapter_model.safetensors")
    with pytest.raises(UnsupportedError, match=r"l\.weight: row 0, column 0 is .* terms with a root"):
        adaptertool.merge(base, [*adapters, tmp_path / "g"], tmp_path / "out.safetensors")
