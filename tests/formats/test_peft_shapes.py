"""Shapes that no factor has, wherever one can stand: each ends in an error of ours."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_adapter, write_checkpoint
from peft_files import refusal

from adaptertool.errors import InputError
from adaptertool.tasks.merge import prepare_merge

# Shapes that no factor has, wherever one can stand.

EXPERTS = "mlp.experts"
PLACES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], dict[str, Any]]] = {
    # config, base, factors, config of the adapter
    "plain": ({}, {"l.weight": (8, 6)}, {"l.lora_A.weight": (4, 6), "l.lora_B.weight": (8, 4)}, {}),
    "dora": (
        {},
        {"l.weight": (8, 6)},
        {"l.lora_A.weight": (4, 6), "l.lora_B.weight": (8, 4), "l.lora_magnitude_vector": (8,)},
        {"use_dora": True},
    ),
    "bias": (
        {},
        {"l.weight": (8, 6), "l.bias": (8,)},
        {"l.lora_A.weight": (4, 6), "l.lora_B.weight": (8, 4), "l.lora_B.bias": (8,)},
        {"lora_bias": True},
    ),
    "convolution": ({}, {"l.weight": (8, 6, 3)}, {"l.lora_A.weight": (4, 6, 3), "l.lora_B.weight": (8, 4, 1)}, {}),
    "saved": ({}, {"l.weight": (8, 6)}, {"l.weight": (8, 6)}, {}),
    "embedding": ({}, {"l.weight": (8, 6)}, {"l.lora_embedding_A": (4, 8), "l.lora_embedding_B": (6, 4)}, {}),
    "rows": (
        {},
        {"l.weight": (8, 6)},
        {"l.token_adapter.trainable_tokens_delta": (2, 6)},
        {"trainable_token_indices": [1, 3]},
    ),
    "attention": (
        {},
        {"l.in_proj_weight": (18, 6), "l.out_proj.weight": (6, 6)},
        {
            "l.lora_A.weight": (4, 6),
            "l.lora_B.weight": (18, 4),
            "l.base_layer.out_proj.lora_A.weight": (4, 6),
            "l.base_layer.out_proj.lora_B.weight": (6, 4),
        },
        {},
    ),
    "joined": (
        {},
        {"gate_proj.weight": (8, 6), "up_proj.weight": (8, 6)},
        {"gate_up_proj.lora_A.weight": (4, 6), "gate_up_proj.lora_B.weight": (16, 4)},
        {},
    ),
    "cut": (
        {"model_type": "phi3", "num_key_value_heads": 2, "head_dim": 2},
        {"qkv_proj.weight": (16, 6)},
        {"k_proj.lora_A.weight": (4, 6), "k_proj.lora_B.weight": (4, 4), "v_proj.weight": (4, 6)},
        {},
    ),
    "fused": (
        {"architectures": ["Qwen3MoeForCausalLM"]},
        {f"{EXPERTS}.down_proj": (3, 8, 6)},
        {f"{EXPERTS}.lora_A.weight": (12, 6), f"{EXPERTS}.lora_B.weight": (8, 12)},
        {"target_parameters": [f"{EXPERTS}.down_proj"]},
    ),
    "one of the fused": (
        {"architectures": ["Qwen3MoeForCausalLM"]},
        {f"{EXPERTS}.down_proj": (3, 8, 6)},
        {f"{EXPERTS}.1.down_proj.lora_A.weight": (4, 6), f"{EXPERTS}.1.down_proj.lora_B.weight": (8, 4)},
        {},
    ),
    "apart": (
        {},
        {f"{EXPERTS}.{e}.down_proj.weight": (8, 6) for e in range(3)},
        {f"{EXPERTS}.lora_A.weight": (12, 6), f"{EXPERTS}.lora_B.weight": (8, 12)},
        {"target_parameters": [f"{EXPERTS}.down_proj"]},
    ),
}


@pytest.mark.long("place")
@pytest.mark.parametrize("shape", [(), (0,), (3,), (4,), (2, 2, 2), (0, 0), (4, 0), (0, 6), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_factors_of_any_shape_end_in_an_error_of_ours(tmp_path: Path, place: str, shape: tuple[int, ...]) -> None:
    config, stored, factors, fields = PLACES[place]
    config = {"model_type": "llama", "tie_word_embeddings": False} | config
    base = write_checkpoint(tmp_path / "base", {name: torch.ones(size) for name, size in stored.items()}, config=config)
    good = {name: torch.ones(size) for name, size in factors.items()}
    prepare_merge(base, [write_adapter(tmp_path / "good", good, **fields)])
    for number, name in enumerate(factors):
        bad = write_adapter(tmp_path / f"bad{number}", good | {name: torch.ones(shape)}, **fields)
        assert refusal(base, bad)
    saved = {f"{name.removesuffix('.weight')}.weight": torch.ones(shape) for name in stored}
    with contextlib.suppress(InputError):
        prepare_merge(base, [write_adapter(tmp_path / "all", saved)])
