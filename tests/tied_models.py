"""Tiny models with tied ends, adapters for them, and the answers of the merged and the unmerged model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from models import BERT, TEXT, VISION, build
from peft import LoraConfig, PeftModel, get_peft_model

import adaptertool

TIED = TEXT | {"tie_word_embeddings": True}
MODELS: dict[str, tuple[dict[str, Any], str, str]] = {  # config, embedding, head
    "LlamaForCausalLM": (TIED, "embed_tokens", "lm_head"),
    "Qwen2ForCausalLM": (TIED, "embed_tokens", "lm_head"),
    "GemmaForCausalLM": (TEXT, "embed_tokens", "lm_head"),
    "GPT2LMHeadModel": ({"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}, "wte", "lm_head"),
    "OPTForCausalLM": (BERT | {"ffn_dim": 48, "word_embed_proj_dim": 32}, "embed_tokens", "lm_head"),
    "BloomForCausalLM": (
        {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 4},
        "word_embeddings",
        "lm_head",
    ),
    "BertForMaskedLM": (BERT, "word_embeddings", "cls.predictions.decoder"),
    "Gemma3ForConditionalGeneration": (
        {"text_config": TIED, "vision_config": VISION, "mm_tokens_per_image": 4, "tie_word_embeddings": True},
        "language_model.embed_tokens",
        "lm_head",
    ),
}


def saved(tmp_path: Path, name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    model = build(name, MODELS[name][0]).to(dtype)
    model.tie_weights()
    model.save_pretrained(tmp_path / "base", **options)
    return model


def adapt(model: Any, folder: Path, *, save: bool | str = "auto", **options: Any) -> Path:
    tuned = get_peft_model(copy.deepcopy(model).float(), LoraConfig(**{"r": 2, "init_lora_weights": False} | options))
    with torch.no_grad():
        for parameter in {id(p): p for p in tuned.parameters() if p.requires_grad}.values():
            parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(folder, save_embedding_layers=save)
    return folder


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(12).reshape(2, 6) * 5 % 60 + 3
    with torch.no_grad():
        return model.double().eval()(input_ids=ids).logits


def check(tmp_path: Path, model: Any, adapter: Path) -> Any:
    """The merged model behaves as PEFT's unmerged one; what it was read from lies in tmp_path / "out"."""
    report = adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "base", dtype=torch.float64)
    expected = logits(PeftModel.from_pretrained(loaded, adapter))
    ours = type(model).from_pretrained(tmp_path / "out", dtype=torch.float64)
    plain = logits(type(model).from_pretrained(tmp_path / "base", dtype=torch.float64))
    scale = expected.abs().max()
    assert (expected - plain).abs().max() > 1e-2 * scale
    assert (logits(ours) - expected).abs().max() < 1e-5 * scale
    return report


def is_tied(folder: Path) -> bool:
    return bool(json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True))


FLAG = "tie_word_embeddings"
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True, "vocab_size": 12}
E = "model.embed_tokens.weight"


def weights(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Wide and narrow dtypes mixed, so that a new header has something to keep in order."""
    return {
        E: torch.randn(12, 6).bfloat16(), "model.norm.weight": torch.randn(5),
        "flags": torch.ones(3, dtype=torch.uint8),
        "model.layers.0.q.weight": torch.randn(6, 6).half(), **more,
    }  # fmt: skip
