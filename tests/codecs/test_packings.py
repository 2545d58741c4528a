"""GPTQ and AWQ as their libraries unpack them, recorded: tools/record_packings.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import load, lora_factors, write_adapter, write_checkpoint
from quantised_bases import X

import adaptertool as library

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
RECORDED = json.loads((Path(__file__).parent / "packings.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_as_the_library(tmp_path: Path, name: str) -> None:
    """Random words: zeros of v1 are all, those that carry into their neighbours too."""
    tensors = dict(RECORDED[name])
    weight = torch.tensor(tensors.pop("weight"))
    named = {f"{X}.{key}": torch.tensor(value, dtype=torch.float16 if key == "scales" else torch.int32)
             for key, value in tensors.items()}  # fmt: skip
    version, _, bits = name.partition(", ")
    said: dict[str, object] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    if version != "awq":
        said = {"quant_method": "gptq", "bits": int(bits[0]), "group_size": 32, "checkpoint_format": version}
    base = write_checkpoint(tmp_path / "base", named, config=CONFIG | {"quantization_config": said})
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (16, 64)))
    library.merge(base, [adapter], tmp_path / "out", weights=[0], dtype="f32")
    assert load(tmp_path / "out")[f"{X}.weight"].equal(weight)
