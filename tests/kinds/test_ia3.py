"""(IA)³ against rationals, through every command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, write_checkpoint
from one_kind import gain, require_commands, write
from oracle import fractions

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

OUT, IN = 6, 4


def vector(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Of both signs, zeros, and bits at both ends of the dtype."""
    return torch.cat(
        [torch.tensor([0.0, -1.0, 1 + torch.finfo(dtype).eps], dtype=dtype), torch.randn(count - 3).to(dtype)]
    )


def by_rows(factor: torch.Tensor, columns: int = IN) -> list[list[Fraction]]:
    return [[each] * columns for each in fractions(factor.reshape(-1))]


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_outputs(tmp_path: Path, dtype: torch.dtype, factors: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"l.weight": torch.randn(OUT, IN).to(dtype), "l.bias": torch.randn(OUT).to(dtype), "rest": torch.ones(2)}
    scales = vector(OUT, factors).reshape(OUT, 1)
    adapter = write(tmp_path / "a", {"l.ia3_l": scales}, peft_type="IA3", feedforward_modules=["down"])
    formulas = {"l.weight": gain(by_rows(scales)), "l.bias": gain(by_rows(scales, 1))}
    require_commands(tmp_path, stored, adapter, formulas, monkeypatch)


def test_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"l.weight": torch.randn(OUT, IN).to(torch.float16), "l.bias": torch.randn(OUT)}
    scales = vector(IN, torch.float32).reshape(1, IN)
    adapter = write(tmp_path / "a", {"l.ia3_l": scales}, peft_type="IA3", feedforward_modules=r"l|.*\.down")
    require_commands(tmp_path, stored, adapter, {"l.weight": gain([fractions(scales[0])] * OUT)}, monkeypatch)


@pytest.mark.parametrize("inputs", [False, True])
def test_square_weights_that_are_stored_transposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: bool
) -> None:
    """GPT-2's attention has such: the config of the model tells, and never the shapes."""
    name = "h.0.attn.c_proj"
    scales = vector(IN, torch.float32)
    gains = by_rows(scales) if inputs else [fractions(scales)] * IN  # of the matrix as it is stored: (in, out)
    stored = {f"{name}.weight": torch.randn(IN, IN), f"{name}.bias": torch.randn(IN)}
    factor = {f"transformer.{name}.ia3_l": scales.reshape(1, -1) if inputs else scales.reshape(-1, 1)}
    adapter = write(tmp_path / "a", factor, peft_type="IA3", feedforward_modules=["c_proj"] if inputs else [])
    formulas = {f"{name}.weight": gain(gains)} | ({} if inputs else {f"{name}.bias": gain(by_rows(scales, 1))})
    config = '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}'
    require_commands(tmp_path, stored, adapter, formulas, monkeypatch, config=config, lora=False)


@pytest.mark.parametrize("inputs", [False, True])
def test_convolutions_of_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: bool) -> None:
    """Of three groups with two inputs and two outputs each."""
    stored = {"l.weight": torch.randn(6, 2, 3, 1), "l.bias": torch.randn(6)}
    scales = vector(6, torch.float32)
    own = fractions(scales)
    rows = [[own[o // 2 * 2 + i] if inputs else own[o] for i in range(2) for _ in range(3)] for o in range(6)]
    adapter = write(
        tmp_path / "a",
        {"l.ia3_l": scales.reshape(1, 6, 1, 1)},
        peft_type="IA3",
        feedforward_modules=["l"] if inputs else [],
    )
    formulas = {"l.weight": gain(rows)} | ({} if inputs else {"l.bias": gain(by_rows(scales, 1))})
    require_commands(tmp_path, stored, adapter, formulas, monkeypatch, lora=False)


def test_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    """Of the rows that it is, and no others."""
    name = "model.layers.0.self_attn"
    fused = torch.randn(3 * 8, 8)
    base = write_checkpoint(tmp_path / "base", {f"{name}.qkv_proj.weight": fused})
    (base / "config.json").write_text(
        '{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_attention_heads": 2, "hidden_size": 8,'
        ' "num_key_value_heads": 2, "tie_word_embeddings": false}'
    )
    scales = torch.randn(8)
    adapter = write(
        tmp_path / "a", {f"{name}.k_proj.ia3_l": scales.reshape(8, 1)}, peft_type="IA3", feedforward_modules=[]
    )
    adaptertool.merge(base, [adapter], tmp_path / "out")
    expected = fused.clone()
    expected[8:16] *= scales[:, None]
    assert load(tmp_path / "out")[f"{name}.qkv_proj.weight"].equal(expected)
    inputs = write(
        tmp_path / "b", {f"{name}.k_proj.ia3_l": scales.reshape(1, 8)}, peft_type="IA3", feedforward_modules=["k_proj"]
    )
    adaptertool.merge(base, [inputs], tmp_path / "inputs")
    expected = fused.clone()
    expected[8:16] *= scales
    assert load(tmp_path / "inputs")[f"{name}.qkv_proj.weight"].equal(expected)


@pytest.mark.parametrize(
    ("shape", "config", "error"),
    [
        ((OUT + 1, 1), {}, MismatchError),
        ((1, OUT), {}, MismatchError),
        ((OUT, 1), {"feedforward_modules": ["l"]}, MismatchError),
        ((), {}, InputError),
        ((OUT,), {}, InputError),
        ((OUT, 1), {"quite_new": 1}, UnsupportedError),
        ((OUT, 1), {"r": 4}, UnsupportedError),
        ((OUT, 1), {"feedforward_modules": 3}, InputError),
        ((OUT, 1), {"feedforward_modules": "(a+)+"}, UnsupportedError),
    ],
)
def test_what_is_refused(
    tmp_path: Path, shape: tuple[int, ...], config: dict[str, Any], error: type[Exception]
) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    adapter = write(tmp_path / "a", {"l.ia3_l": torch.ones(shape)}, peft_type="IA3", **config)
    with pytest.raises(error):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    adaptertool.inspect(adapter, base)
