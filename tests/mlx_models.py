"""Small models of mlx-lm, the adapters that it saves for them, and what it makes of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import _get_classes, load_model, quantize_model, save_config, save_model

__all__ = ["mx", "tree_map"]  # for those who find this module by pytest.importorskip

Config = Mapping[str, Any]

LLAMA: Config = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 2,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    "vocab_size": 64, "tie_word_embeddings": False,
}  # fmt: skip
QWEN: Config = {
    **LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True,
}  # fmt: skip
EXPERTS: Config = {
    **LLAMA, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "head_dim": 8, "num_experts": 4,
    "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 16,
    "rope_theta": 10000.0, "norm_topk_prob": True, "max_position_embeddings": 64,
}  # fmt: skip


def model_of(config: Config, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """The same numbers for the same config."""
    mx.random.seed(0)
    cls, arguments = _get_classes(dict(config))
    model = cls(arguments.from_dict(dict(config)))
    model.update(
        tree_unflatten(
            [(name, (mx.random.normal(w.shape) / 6).astype(dtype)) for name, w in tree_flatten(model.parameters())]
        )
    )
    mx.eval(model.parameters())
    model.freeze()
    return model


def save_base(model: nn.Module, config: Config, folder: Path) -> Path:
    """As mlx_lm.convert does."""
    save_model(folder, model)
    save_config(dict(config), folder / "config.json")
    return folder


def quantised(model: nn.Module, config: Config) -> tuple[nn.Module, Config]:
    return quantize_model(model, dict(config), group_size=32, bits=4)  # type: ignore[no-any-return]


def train(model: nn.Module, kind: str = "lora", *, layers: int = 8, **parameters: Any) -> dict[str, Any]:
    """Give the model layers of adapters with random factors; returns the config as mlx_lm.lora saves it."""
    parameters = {"rank": 4, "scale": 3.5, "dropout": 0.0} | parameters
    linear_to_lora_layers(model, layers, parameters, use_dora=kind == "dora")
    trained = tree_flatten(model.trainable_parameters())
    changed = [(name, (w if name.endswith(".m") else 0) + mx.random.normal(w.shape) / 8) for name, w in trained]
    model.update(tree_unflatten(changed))
    return {
        "fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters, "model": "org/small",
        "iters": 100, "batch_size": 4, "learning_rate": 1e-5, "data": "data", "seed": 0, "config": None,
    }  # fmt: skip


def save_adapter(model: nn.Module, config: Config, folder: Path) -> Path:
    """As mlx_lm.lora does at the end of a training, which has saved checkpoints before."""
    folder.mkdir(parents=True)
    save_config(dict(config), folder / "adapter_config.json")
    trained = dict(tree_flatten(model.trainable_parameters()))
    for name in ("0000050_adapters.safetensors", "adapters.safetensors"):
        mx.save_safetensors(str(folder / name), trained)
    return folder


def fused(model: nn.Module) -> nn.Module:
    """What mlx_lm.fuse makes of a model with an adapter."""
    layers = [(name, module.fuse(dequantize=True)) for name, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(tree_unflatten(layers))
    return model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(w.astype(mx.float32))) for name, w in tree_flatten(model.parameters())}


def with_adapter(config: Config, adapter: Path, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """The model with an adapter as mlx-lm loads it, which is an error where a tensor is not the model's."""
    return load_adapters(model_of(config, dtype), str(adapter))


def model_at(folder: Path) -> nn.Module:
    return load_model(folder)[0]  # type: ignore[no-any-return]


def outputs(model: nn.Module) -> torch.Tensor:
    tokens = mx.array([[1, 5, 9, 2, 33, 7]])
    return torch.from_numpy(np.array(model(tokens).astype(mx.float32)))


def as_hugging_face(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights by the names of Hugging Face: every expert by itself."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights(model).items():
        if ".switch_mlp." not in name:
            found[name] = tensor
            continue
        for expert, own in enumerate(tensor):
            found[name.replace(".switch_mlp.", f".experts.{expert}.")] = own.clone()
    return found


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
