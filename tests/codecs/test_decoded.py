"""Every format of codes: each number is what its formula says, in rationals, and edits are made to just that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import load, lora_factors, write_adapter, write_checkpoint
from oracle import fractions, round_fraction
from quantised_bases import FORMATS, Q, Quantised, X
from rationals import Matrix, delta

import adaptertool as library

BIAS = "model.layers.0.mlp.gate.bias"
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


def base_of(folder: Path, made: Quantised, shards: int = 1) -> Path:
    plain = {f"{Q}.weight": torch.randn(8, 6).bfloat16(), BIAS: torch.randn(5)}
    config = CONFIG | {"dtype": "float16", "quantization_config": made.config}
    return write_checkpoint(folder, plain | dict(made.tensors), shards=shards, config=config)


def same_numbers(found: torch.Tensor, exact: Matrix) -> None:
    expected = [round_fraction(value, found.dtype) for row in exact for value in row]
    assert fractions(found) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_decoded_and_edited(tmp_path: Path, name: str) -> None:
    decoded_and_edited(tmp_path, FORMATS[name](), "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("name", ["FP8, blocks", "INT8 of bitsandbytes", "NVFP4", "NF4"])
def test_other_dtypes(tmp_path: Path, name: str, dtype: str) -> None:
    decoded_and_edited(tmp_path, FORMATS[name](), dtype)


def decoded_and_edited(folder: Path, made: Quantised, dtype: str) -> None:
    base, shape = base_of(folder / "base", made, shards=2), (len(made.exact), len(made.exact[0]))
    elsewhere = write_adapter(folder / "elsewhere", lora_factors(Q, (8, 6)))
    factors = lora_factors(X, shape, rank=2, dtype=torch.bfloat16)
    adapter = write_adapter(folder / "adapter", factors, r=2, lora_alpha=2)
    change = delta(*factors.values())
    edited = [[w + d for w, d in zip(*rows, strict=True)] for rows in zip(made.exact, change, strict=True)]
    for number, (one, exact) in enumerate(((elsewhere, made.exact), (adapter, edited))):
        report = library.merge(base, [one], folder / f"out-{number}", dtype=dtype, verify=True)
        found = load(folder / f"out-{number}")
        assert found.keys() == {f"{Q}.weight", BIAS, made.name}
        assert found[made.name].dtype == DTYPES[dtype] and found[BIAS].dtype == torch.float32
        same_numbers(found[made.name], exact)
        assert any("decoded" in note for note in report.notes)
        config = json.loads((folder / f"out-{number}" / "config.json").read_text())
        assert config == CONFIG | {"dtype": str(DTYPES[dtype]).removeprefix("torch.")}
        index = json.loads((folder / f"out-{number}" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == found.keys()
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
