"""Llamas of some 500 numbers, as mergekit and we read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, WIDE, VOCABULARY = 4, 6, 8
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
}
_LAYER = {
    "input_layernorm": (HIDDEN,),
    "mlp.down_proj": (HIDDEN, WIDE),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "post_attention_layernorm": (HIDDEN,),
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
}


def llama(
    folder: Path, seed: int, layers: int = 4, *, like: dict[str, np.ndarray] | None = None, tied: bool = False
) -> dict[str, np.ndarray]:
    """Write a model, and return its tensors. like: those of the model that it was tuned from"""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in _LAYER.items()}
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    draw = np.random.default_rng(seed).standard_normal
    tensors = {name: draw(shape).astype(np.float32) for name, shape in sorted(shapes.items())}
    if like is not None:
        tensors = {name: (like[name] + np.float32(0.3) * own).astype(np.float32) for name, own in tensors.items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {**CONFIG, "num_hidden_layers": layers, "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def write_models(folder: Path) -> None:
    """base, a, b and c tuned from it; deep, of six layers; tied, without a head."""
    base = llama(folder / "base", 1)
    for seed, name in enumerate("abc", 2):
        llama(folder / name, seed, like=base)
    llama(folder / "deep", 7, 6)
    llama(folder / "tied", 8, tied=True)
    llama(folder / "tied2", 9, tied=True)


def projections(tensors: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Of each tensor three sums, each element times another fixed number: what tells tensors apart, in little room."""
    found = {}
    for name, tensor in sorted(tensors.items()):
        flat = np.asarray(tensor, np.float64).reshape(-1)
        at = np.arange(flat.size) + 1.0
        found[name] = [float(f"{(flat * np.sin(k * at + k)).sum():.8g}") for k in (1.0, 1.7, 2.9)]
    return found
