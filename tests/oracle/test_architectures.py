"""Many architectures, tiny and random: PEFT trains an adapter on each, we merge it into the checkpoint on disk.

OUT is loaded by transformers, and every parameter in memory compared with PEFT's merge in float64.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from models import MODELS, attention_of, build, compare, outputs
from peft import LoraConfig, PeftModel, get_peft_model

import adaptertool

WAYS = [(torch.bfloat16, "as given"), (torch.float32, "as given"), (torch.float32, "attention")]


@pytest.mark.long("name")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "targets"), WAYS)
def test_architecture(tmp_path: Path, name: str, dtype: torch.dtype, targets: str) -> None:
    fields, options = MODELS[name]
    if targets == "attention":
        options = {"target_modules": attention_of(build(name, fields))}
    model = build(name, fields).to(dtype)
    model.save_pretrained(tmp_path / "base", max_shard_size="60KB")
    tuned = get_peft_model(
        copy.deepcopy(model).float(), LoraConfig(**{"r": 2, "target_modules": "all-linear"} | options)
    )
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)

    report = adaptertool.merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    changed = compare(model, tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype)
    assert changed == report.tensors_edited > 0
    if dtype == torch.float32 and "conv1" not in options.get("target_modules", ()):  # Whisper asks conv1 for its stride
        fresh = type(model).from_pretrained(tmp_path / "base")
        unmerged = outputs(PeftModel.from_pretrained(fresh, tmp_path / "adapter").base_model.model)
        merged = outputs(type(model).from_pretrained(tmp_path / "out"))
        assert len(merged) == len(unmerged) > 0
        for found, expected in zip(merged, unmerged, strict=True):
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
