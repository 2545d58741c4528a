"""Fused projections of dense layers: adapters of split ones onto them, and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, lora_factors, same_bits, write_adapter, write_checkpoint
from expert_models import H_, LLAMA, PHI, SIZES, Q, fuse, split_weights, train
from models import build, compare

import adaptertool
from adaptertool.errors import MismatchError, UnsupportedError

# Fused projections of dense layers.


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj"], ["k_proj"], ["q_proj", "v_proj"]])
@pytest.mark.parametrize("dora", [False, True])
def test_split_adapters_onto_fused_projections(tmp_path: Path, targets: list[str], dora: bool) -> None:
    weights, factors = split_weights(), {}
    for name in targets:
        factors |= lora_factors(f"{Q}.{name}", (SIZES[name], H_))
        if dora:
            factors[f"{Q}.{name}.lora_magnitude_vector"] = torch.rand(SIZES[name]) + 1
        factors[f"{Q}.{name}.bias"] = torch.randn(SIZES[name])
    adapter = write_adapter(tmp_path / "a", factors, use_dora=dora, bias="all")
    for number, (config, stored) in enumerate(((LLAMA, weights), (PHI, fuse(weights)))):
        base = write_checkpoint(tmp_path / f"base{number}", stored, config=config)
        adaptertool.merge(base, [adapter], tmp_path / f"out{number}")
    found = load(tmp_path / "out1")
    for name, tensor in fuse(load(tmp_path / "out0")).items():
        assert same_bits(found[name], tensor)


@pytest.mark.parametrize("dora", [False, True])
def test_fused_adapters_onto_split_projections(tmp_path: Path, dora: bool) -> None:
    weights, factors = split_weights(), dict(lora_factors(f"{Q}.qkv_proj", (16, H_)))
    if dora:
        factors[f"{Q}.qkv_proj.lora_magnitude_vector"] = torch.rand(16) + 1
    adapter = write_adapter(tmp_path / "a", factors, use_dora=dora)
    for number, (config, stored) in enumerate(((LLAMA, weights), (PHI, fuse(weights)))):
        base = write_checkpoint(tmp_path / f"base{number}", stored, config=config)
        adaptertool.merge(base, [adapter], tmp_path / f"out{number}")
    found = load(tmp_path / "out1")
    for name, tensor in fuse(load(tmp_path / "out0")).items():
        assert same_bits(found[name], tensor)


def test_parts_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    weights = fuse(split_weights(bias=False))
    base = write_checkpoint(tmp_path / "base", weights, config=PHI)
    other = write_checkpoint(tmp_path / "other", weights, config=PHI | {"model_type": "falcon", "architectures": []})
    for name, rows in (("q_proj", 9), ("k_proj", 6), ("k_proj", 2), ("v_proj", 9), ("v_proj", 2), ("q_proj", 4)):
        adapter = write_adapter(tmp_path / f"{name}{rows}", lora_factors(f"{Q}.{name}", (rows, H_)))
        with pytest.raises(MismatchError, match=rf"part \d of 3 of .*qkv_proj.*but its factors are for {rows} rows"):
            adaptertool.merge(base, [adapter], tmp_path / "out")
    adapter = write_adapter(tmp_path / "q", lora_factors(f"{Q}.q_proj", (8, H_)))
    with pytest.raises(UnsupportedError, match=r"seems to be stored inside .*qkv_proj"):
        adaptertool.merge(other, [adapter], tmp_path / "out")
    split = write_checkpoint(tmp_path / "split", split_weights(bias=False), config=LLAMA)
    adapter = write_adapter(tmp_path / "f", lora_factors(f"{Q}.qkv_proj", (17, H_)))
    with pytest.raises(MismatchError, match="stored in 3 tensors"):
        adaptertool.merge(split, [adapter], tmp_path / "out")


def test_projections_that_transformers_cuts_on_loading(tmp_path: Path) -> None:
    """Dinov2's SwiGLU: weights_in on the disk, gate_proj and up_proj in memory."""
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 8,
              "use_swiglu_ffn": True}  # fmt: skip
    model = build("Dinov2Model", fields)
    model.save_pretrained(tmp_path / "base")
    assert any("weights_in" in name for name in load(tmp_path / "base"))
    adapter = train(model, tmp_path / "adapter", target_modules=["up_proj", "gate_proj"], bias="lora_only")
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    assert compare(model, tmp_path / "base", adapter, tmp_path / "out", torch.float32) == 8


@pytest.mark.parametrize("fields", [
    {}, {"num_key_value_heads": None, "num_attention_heads": 2}, {"head_dim": 1, "num_key_value_heads": 4},
    {"head_dim": None},
])  # fmt: skip
def test_where_k_and_v_lie_is_told_by_the_config(tmp_path: Path, fields: dict[str, Any]) -> None:
    if fields.get("num_attention_heads"):
        fields = fields | {"hidden_size": 4}
    weights = fuse(split_weights(bias=False))
    base = write_checkpoint(tmp_path / "base", weights, config=PHI | fields)
    factors = lora_factors(f"{Q}.k_proj", (4, H_))
    adaptertool.merge(base, [write_adapter(tmp_path / "a", factors)], tmp_path / "out")
    name = f"{Q}.qkv_proj.weight"
    changed = (load(tmp_path / "out")[name] != weights[name]).any(1).nonzero().flatten().tolist()
    assert changed == [8, 9, 10, 11]


@pytest.mark.parametrize("missing", ["num_key_value_heads", "hidden_size", "num_attention_heads"])
def test_a_config_that_does_not_tell_where_k_and_v_lie(tmp_path: Path, missing: str) -> None:
    config = {key: value for key, value in PHI.items() if key != missing}
    base = write_checkpoint(tmp_path / "base", fuse(split_weights(bias=False)), config=config)
    adapter = write_adapter(tmp_path / "a", lora_factors(f"{Q}.k_proj", (4, H_)))
    with pytest.raises(UnsupportedError, match=r"config\.json has no num_key_value_heads and head_dim"):
        adaptertool.merge(base, [adapter], tmp_path / "out")
