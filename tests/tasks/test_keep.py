"""`--quantise keep`: codes and scales against rationals; what is told of it; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import load, lora_factors, write_adapter, write_checkpoint
from kept import FORMATS, judge
from quantised_bases import Q, Quantised, X
from rationals import delta

import adaptertool as library

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


def base_of(folder: Path, made: Quantised, shards: int = 1) -> Path:
    plain = {f"{Q}.weight": torch.randn(8, 6).bfloat16(), "model.norm.weight": torch.ones(6)}
    config = CONFIG | {"quantization_config": made.config}
    return write_checkpoint(folder, plain | dict(made.tensors), shards=shards, config=config)


@pytest.mark.parametrize("size", [0.003, 0.1, 3.0])
@pytest.mark.parametrize("name", FORMATS)
def test_lora(tmp_path: Path, name: str, size: float) -> None:
    made, lattice = FORMATS[name]
    made = made()
    base = base_of(tmp_path / "base", made, shards=2)
    factors = lora_factors(X, (len(made.exact), len(made.exact[0])), rank=2, dtype=torch.bfloat16)
    largest = max(abs(value) for row in made.exact for value in row)
    factors = {key: (tensor * (size * float(largest)) ** 0.5).bfloat16() for key, tensor in factors.items()}
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, lora_alpha=2)
    change = delta(*factors.values())
    report = library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    exact = [[w + d for w, d in zip(*rows, strict=True)] for rows in zip(made.exact, change, strict=True)]
    judge(lattice, load(base), load(tmp_path / "out"), exact)
    assert report.kept is not None
