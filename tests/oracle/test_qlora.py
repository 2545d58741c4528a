"""`--as-trained` against a model that transformers loads in 4 bits, by bitsandbytes on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import load, lora_factors, write_adapter
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import adaptertool as library


def test_every_weight_is_what_the_run_computes_with(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    pytest.importorskip("accelerate")
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=False, **size)).bfloat16()
    model.save_pretrained(tmp_path / "base")
    factors = lora_factors("model.layers.0.mlp.up_proj", (96, 64))
    adapter = write_adapter(tmp_path / "adapter", factors)
    library.merge(tmp_path / "base", [adapter], tmp_path / "out", as_trained="nf4", weights=[0])
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    run = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=how, dtype=torch.bfloat16)
    found, seen = load(tmp_path / "out"), 0
    for name, parameter in run.named_parameters():
        state = getattr(parameter, "quant_state", None)
        seen += state is not None
        numbers = parameter if state is None else functional.dequantize_4bit(parameter.data, state)
        assert found[name].equal(numbers.detach()), name
    assert seen == 7
