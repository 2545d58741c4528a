"""wise --as-adapter for fused experts and projections: merged, OUT is the interpolation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import PREFIX, load, lora_factors, same_bits, write_adapter, write_checkpoint
from expert_models import CONFIGS, E_, H_, I_, MODELS, R_, X, experts, one_by_one, store
from expert_models import train as train_model
from interpolated import U, closed
from models import build, compare

import adaptertool


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])
def test_fused_experts(tmp_path: Path, name: str) -> None:
    fields, parameters = MODELS[name]
    model = build(name, fields).float()
    model.save_pretrained(tmp_path / "base", max_shard_size="60KB")
    patterns = {"rank_pattern": {".*experts.down_proj": 3}, "alpha_pattern": {".*experts.gate_up_proj": 5}}
    adapter = train_model(model, tmp_path / "a", target_parameters=parameters, use_rslora=True, **patterns)
    adaptertool.wise(tmp_path / "base", adapter, tmp_path / "out", "1", as_adapter=True)
    adaptertool.merge(tmp_path / "base", [tmp_path / "out"], tmp_path / "merged")
    assert compare(model, tmp_path / "base", adapter, tmp_path / "merged", torch.float32) == 4
    adaptertool.wise(tmp_path / "base", adapter, tmp_path / "third", "0.3", as_adapter=True)
    adaptertool.merge(tmp_path / "base", [tmp_path / "third"], tmp_path / "merged third")
    adaptertool.wise(tmp_path / "base", adapter, tmp_path / "wise", "0.3")
    ours, wise, before = (load(tmp_path / folder) for folder in ("merged third", "wise", "base"))
    for key, tensor in wise.items():
        assert torch.allclose(ours[key], tensor, rtol=2 * U, atol=1e-9), key
    assert sum(not same_bits(tensor, before[key]) for key, tensor in ours.items()) >= 4


@pytest.mark.parametrize("how", ["apart", "fused", "transposed", "interleaved"])
@pytest.mark.parametrize("dora", [False, True])
def test_single_experts(tmp_path: Path, how: str, dora: bool) -> None:
    factors = one_by_one()
    if dora:
        for key in [key for key in factors if "lora_B" in key]:
            factors[key.replace("lora_B.weight", "lora_magnitude_vector")] = torch.rand(len(factors[key])) + 1
    adapter = write_adapter(tmp_path / "a", factors, r=R_, use_dora=dora)
    base = write_checkpoint(tmp_path / "base", store(*experts(), how), config=CONFIGS[how])
    assert closed(tmp_path, base, adapter) == (3 * E_ if how == "apart" else 2)


@pytest.mark.parametrize("how", ["apart", "fused"])
def test_saved_experts_in_as_many_tensors_as_they_are_stored(tmp_path: Path, how: str) -> None:
    tuned = store(*experts(), "fused")
    adapter = write_adapter(tmp_path / "a", tuned, modules_to_save=["experts"])
    base = write_checkpoint(tmp_path / "base", store(*experts(), how), config=CONFIGS[how])
    assert closed(tmp_path, base, adapter) == (3 * E_ if how == "apart" else 2)
    assert {key: t.shape for key, t in load(tmp_path / "out").items()} == {
        PREFIX + k: t.shape for k, t in tuned.items()
    }


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, how) for kind in ("lora", "dora", "saved") for how in ("joined", "cut")]
    + [("lora", "interleaved"), ("dora", "interleaved")],  # saved weights on such experts are refused, as on merging
)
def test_fused_and_split_projections(tmp_path: Path, kind: str, how: str) -> None:
    """Factors of one projection for several tensors, and of several for a part of one."""
    attention = "model.layers.0.self_attn"
    if how == "joined":  # the adapter has them as one, the base apart
        stored = {f"{attention}.{name}_proj.weight": (size, 6) for name, size in (("q", 8), ("k", 4), ("v", 4))}
        own, config, count = {f"{attention}.qkv_proj": (16, 6)}, None, 3
    elif how == "cut":
        stored = {f"{attention}.qkv_proj.weight": (16, 6)}
        own, config, count = (
            {f"{attention}.q_proj": (8, 6), f"{attention}.v_proj": (4, 6)},
            {"model_type": "phi3", "num_key_value_heads": 2, "head_dim": 2},
            1,
        )
    else:
        stored = {f"{X}.gate_up_proj": (E_, H_, 2 * I_)}
        own, config, count = {f"{X}.1.up_proj": (I_, H_)}, CONFIGS["interleaved"], 1
    base = write_checkpoint(
        tmp_path / "base",
        {name: torch.randn(shape) for name, shape in stored.items()},
        config=config and {"tie_word_embeddings": False, **config},
    )
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in own.items():
        if kind == "saved":
            tensors[f"{name}.weight"] = torch.randn(shape)
            continue
        tensors |= lora_factors(name, shape)
        if kind == "dora":
            tensors[f"{name}.lora_magnitude_vector"] = torch.rand(shape[0]) + 2
            tensors = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    assert closed(tmp_path, base, write_adapter(tmp_path / "a", tensors, use_dora=kind == "dora")) == count
