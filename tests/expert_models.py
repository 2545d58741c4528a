"""Models with fused experts and projections, the ways of storing them, and factors for them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from conftest import Tensors, load, lora_factors, write_checkpoint
from models import MOE
from peft import LoraConfig, get_peft_model
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import adaptertool

FUSED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
FED = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]
MODELS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "MixtralForCausalLM": (MOE, FUSED),
    "Qwen2MoeForCausalLM": (MOE | {"shared_expert_intermediate_size": 24}, FUSED),
    "Qwen3MoeForCausalLM": (MOE, FUSED),
    "OlmoeForCausalLM": (MOE, FUSED),
    "PhimoeForCausalLM": (MOE, FUSED[1:]),
    "DeepseekV3ForCausalLM": (
        MOE | {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "n_group": 1,
               "qk_nope_head_dim": 4, "v_head_dim": 8, "topk_group": 1, "first_k_dense_replace": 0,
               "n_shared_experts": 1, "n_routed_experts": 4},
        FUSED,
    ),
    "Glm4MoeForCausalLM": (
        MOE | {"first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "n_routed_experts": 4},
        FUSED,
    ),
    "Ernie4_5_MoeForCausalLM": (
        MOE | {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0, "moe_num_shared_experts": 1}, FUSED,
    ),
    "MiniMaxM2ForCausalLM": (MOE, FUSED),
    "JambaForCausalLM": (MOE, FED[:1]),
    "GraniteMoeForCausalLM": (MOE, ["experts.gate_up_proj", "experts.down_proj"]),
    "GptOssForCausalLM": (MOE | {"intermediate_size": 32}, FUSED),  # transposed, and down_proj is square
    "Llama4ForCausalLM": (MOE | {"intermediate_size_mlp": 48, "interleave_moe_layer_step": 1}, FED),
}  # fmt: skip


def train(model: Any, folder: Path, **options: Any) -> Path:
    """An adapter of PEFT's with random factors."""
    tuned = get_peft_model(copy.deepcopy(model).float(), LoraConfig(**{"r": 2, "target_modules": []} | options))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


E_, I_, H_, R_ = 3, 4, 6, 2
X = "model.layers.0.mlp.experts"
CONFIGS: dict[str, dict[str, Any]] = {
    "apart": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "tie_word_embeddings": False},
    "fused": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "tie_word_embeddings": False},
    "transposed": {"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", "tie_word_embeddings": False},
    "interleaved": {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "tie_word_embeddings": False},
    "unknown": {"architectures": ["NeverHeardOf"], "model_type": "x", "tie_word_embeddings": False},
}


def store(
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, how: str, prefix: str = X
) -> dict[str, torch.Tensor]:
    """Experts (E, I, H), (E, I, H) and (E, H, I) as the checkpoints of different families have them."""
    if how in ("apart", "unknown"):
        return {
            f"{prefix}.{e}.{part}_proj.weight": tensor[e].contiguous()
            for e in range(len(gate))
            for part, tensor in (("gate", gate), ("up", up), ("down", down))
        }
    both = torch.stack([gate, up], dim=2).flatten(1, 2) if how == "interleaved" else torch.cat([gate, up], dim=1)
    if how != "fused":
        both, down = both.transpose(1, 2), down.transpose(1, 2)
    return {f"{prefix}.gate_up_proj": both.contiguous(), f"{prefix}.down_proj": down.contiguous()}


def experts(sizes: tuple[int, int, int] = (E_, I_, H_)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    e, i, h = sizes
    return torch.randn(e, i, h), torch.randn(e, i, h), torch.randn(e, h, i)


def one_by_one(rank: int = R_) -> dict[str, torch.Tensor]:
    factors: dict[str, torch.Tensor] = {}
    for e in range(E_):
        for part, shape in (("gate", (I_, H_)), ("up", (I_, H_)), ("down", (H_, I_))):
            factors |= lora_factors(f"{X}.{e}.{part}_proj", shape, rank)
    return factors


def merged_experts(folder: Path, how: str, weights: Any, adapter: Path, **options: Any) -> dict[str, torch.Tensor]:
    base = write_checkpoint(folder / f"base-{how}", store(*weights, how), config=CONFIGS[how])
    adaptertool.merge(base, [adapter], folder / f"out-{how}", **options)
    return load(folder / f"out-{how}")


def fused_factors(on_first: bool, sizes: tuple[int, int, int] = (E_, I_, H_)) -> dict[str, torch.Tensor]:
    """As PEFT keeps them: A (E·r, one dimension), B (the other, E·r)."""
    e, i, h = sizes
    factors = {}
    for key, (rows, columns) in ((f"{X}.base_layer", (2 * i, h)), (X, (h, i))):
        a, b = (rows, columns) if on_first else (columns, rows)
        factors[f"{key}.lora_A.weight"], factors[f"{key}.lora_B.weight"] = (
            torch.randn(e * R_, a),
            torch.randn(b, e * R_),
        )
    return factors


def by_formula(weight: torch.Tensor, factors: Tensors, key: str, on_first: bool) -> torch.Tensor:
    """PEFT's own einsum, in float64."""
    a, b = (factors[f"{key}.lora_{name}.weight"].double() for name in "AB")
    a, b = a.reshape(len(weight), R_, -1), b.reshape(len(b), R_, len(weight))
    return weight.double() + torch.einsum("ore,eri->eio" if on_first else "ore,eri->eoi", b, a) * 4


Q = "model.layers.0.self_attn"
PHI = {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "tie_word_embeddings": False, "hidden_size": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
SIZES = {"q_proj": 8, "k_proj": 4, "v_proj": 4}


def split_weights(bias: bool = True) -> dict[str, torch.Tensor]:
    weights = {f"{Q}.{name}.weight": torch.randn(rows, H_) for name, rows in SIZES.items()}
    biases = {f"{Q}.{name}.bias": torch.randn(rows) for name, rows in SIZES.items()}
    return weights | (biases if bias else {})


def fuse(weights: Tensors) -> dict[str, torch.Tensor]:
    kinds = {name.rpartition(".")[2] for name in weights}
    return {f"{Q}.qkv_proj.{kind}": torch.cat([weights[f"{Q}.{part}.{kind}"] for part in SIZES]) for kind in kinds}


def gpt_oss_in_codes(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
    """A tiny GPT-OSS of random codes: tensors as transformers decodes them, with experts as MXFP4, and its config."""
    config = GptOssConfig(**MODELS["GptOssForCausalLM"][0], tie_word_embeddings=False)
    model = GptOssForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    plain = load(folder)
    quantised = dict(plain)
    for name in [name for name in plain if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, out = quantised.pop(name).shape
        blocks = torch.randint(0, 256, (experts, out, inner // 32, 16), dtype=torch.uint8)
        size = torch.randint(118, 124, (experts, out, inner // 32), dtype=torch.uint8)
        quantised |= {f"{name}_blocks": blocks, f"{name}_scales": size}
        plain[name] = convert_moe_packed_tensors(blocks, size).contiguous()
    return plain, quantised, model.config.to_dict() | {"architectures": ["GptOssForCausalLM"]}
