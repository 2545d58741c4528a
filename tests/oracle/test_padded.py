"""Denoisers of diffusers whose first layer a control LoRA of ComfyUI has padded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import load
from safetensors.torch import save_file

import adaptertool

diffusers = pytest.importorskip("diffusers")

OLD, NEW, RANK, FRONT = 6, 12, 4, "diffusion_model.img_in"


def test_a_model_of_diffusers_loads_what_was_padded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"patch_size": 1, "in_channels": OLD, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    sizes |= {"num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    model = diffusers.FluxTransformer2DModel(**sizes, axes_dims_rope=[4, 4, 8])
    model.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    control = tmp_path / "control.safetensors"
    factors = {f"{FRONT}.lora_A.weight": torch.randn(RANK, NEW), f"{FRONT}.lora_B.weight": torch.randn(32, RANK)}
    said = {f"{FRONT}.alpha": torch.tensor(RANK / 2), f"{FRONT}.reshape_weight": torch.tensor([32, NEW])}
    save_file(factors | said, control)
    adaptertool.merge(tmp_path / "base", [control], tmp_path / "out")
    index = json.loads((tmp_path / "out/diffusion_pytorch_model.safetensors.index.json").read_text())
    total = sum(tensor.nbytes for tensor in load(tmp_path / "out").values())
    assert index["metadata"]["total_size"] == total > sum(tensor.nbytes for tensor in load(tmp_path / "base").values())
    loaded = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "out")
    assert (loaded.config.in_channels, loaded.config.out_channels, loaded.proj_out.out_features) == (NEW, OLD, OLD)
    model.x_embedder.weight = torch.nn.Parameter(torch.nn.functional.pad(model.x_embedder.weight, (0, NEW - OLD)))
    down, up = (factors[f"{FRONT}.lora_{role}.weight"] for role in "AB")
    model.x_embedder.weight.data += 0.5 * up @ down
    given = {"hidden_states": torch.randn(1, 4, NEW), "encoder_hidden_states": torch.randn(1, 2, 8)}
    given |= {"pooled_projections": torch.randn(1, 8), "timestep": torch.ones(1), "img_ids": torch.zeros(4, 3)}
    with torch.no_grad():
        found, right = (one(**given, txt_ids=torch.zeros(2, 3)).sample for one in (loaded, model))
    assert found.shape == (1, 4, OLD) and torch.allclose(found, right, atol=1e-5)
    assert adaptertool.verify(tmp_path / "out", tmp_path / "base", [control]).ok
