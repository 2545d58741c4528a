"""merge against PEFT itself (pinned): its merge in float64, and the logits of its unmerged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, load, same_bits
from oracle import half_ulp_excess
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import adaptertool

TEXT = "Cover the bowl and let the dough rest; the old man looked at the sea."


def peft_float64(base: Path, *adapters: Path) -> dict[str, torch.Tensor]:
    """PEFT's own merge with every weight and factor widened to float64 first, which is exact."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).to(torch.float64).merge_and_unload()
    return model.state_dict()


def check_against_peft(base: Path, out: Path, *adapters: Path) -> None:
    ours, theirs, before = load(out), peft_float64(base, *adapters), load(base)
    assert ours.keys() == theirs.keys() == before.keys()
    for name, exact in theirs.items():
        if exact.equal(before[name].to(torch.float64)):
            assert same_bits(ours[name], before[name]), name
        else:
            assert half_ulp_excess(ours[name], exact).max() <= 1 + 1e-6, name


@pytest.mark.parametrize(("names", "edited"), [(["lora"], 28), (["rslora"], 22), (["lora", "rslora"], 38)])
def test_trained_fixtures(tmp_path: Path, names: list[str], edited: int) -> None:
    adapters = [FIXTURES / name for name in names]
    report = adaptertool.merge(FIXTURES / "base", adapters, tmp_path / "out")
    assert report.tensors_edited == edited
    check_against_peft(FIXTURES / "base", tmp_path / "out", *adapters)


@pytest.mark.parametrize("name", ["lora", "rslora"])
@torch.no_grad()
def test_logits_agree_with_the_unmerged_model(tmp_path: Path, name: str) -> None:
    """Loaded by transformers and run in float32, only the rounding of the merged weights to bf16 remains."""
    adaptertool.merge(FIXTURES / "base", [FIXTURES / name], tmp_path / "out")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT, return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(FIXTURES / "base", dtype=torch.float32)
    plain = base(tokens).logits
    unmerged = PeftModel.from_pretrained(base, FIXTURES / name)(tokens).logits
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(tokens).logits
    assert (plain - unmerged).norm() / unmerged.norm() > 0.3
    assert (ours - unmerged).norm() / unmerged.norm() < 0.02


CONFIGS = {
    "attention": LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj", "k_proj"]),
    "all-linear": LoraConfig(r=2, lora_alpha=8, target_modules="all-linear"),
    "patterns": LoraConfig(
        r=3,
        target_modules=r".*\.(q_proj|up_proj|down_proj)",
        rank_pattern={"q_proj": 5, r"^model\.layers\.1\.mlp\.up_proj": 2},
        alpha_pattern={"layers.0.self_attn.q_proj": 1, "proj": 12},
        use_rslora=True,
    ),
    "one layer": LoraConfig(r=4, target_modules=["o_proj"], layers_to_transform=[1]),
    "biases": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], bias="all"),
    "own biases": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], bias="lora_only"),
    "saved": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "norm", "lm_head"]),
    "head": LoraConfig(r=4, target_modules=["lm_head", "gate_proj"]),
}


@pytest.mark.long("name")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_made_by_peft(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    )
    model = LlamaForCausalLM(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 4)
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    tuned = get_peft_model(model, CONFIGS[name])
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    adaptertool.merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    check_against_peft(tmp_path / "base", tmp_path / "out", tmp_path / "adapter")
