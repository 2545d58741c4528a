"""Vocabularies of another size than the base has: rows, config and head follow, or it is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from conftest import load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from models import TEXT, build
from peft import PeftModel
from safetensors.torch import load_file
from tied_models import FLAG, LLAMA, E, adapt, is_tied, logits, weights

import adaptertool
from adaptertool.errors import MismatchError, UnsupportedError

# Vocabularies of another size.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_resized_vocabulary(tmp_path: Path, tied: bool, lora: bool) -> None:
    """A model of PEFT's whose embeddings were resized before training."""
    model = build("LlamaForCausalLM", TEXT | {"tie_word_embeddings": tied})
    model.tie_weights()
    model.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    grown = copy.deepcopy(model)
    grown.resize_token_embeddings(67)
    targets = ["q_proj", "embed_tokens", "lm_head"] if lora else ["q_proj"]
    adapter = adapt(grown, tmp_path / "adapter", target_modules=targets, save=True)
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert any(tensor.shape == (67, 32) for tensor in tensors.values())
    report = adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    assert any("has 67 rows in the adapter" in note for note in report.notes)
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    assert ours.config.vocab_size == 67
    assert is_tied(tmp_path / "out") == (tied and not lora)
    loaded = type(model).from_pretrained(tmp_path / "base", dtype=torch.float64)
    loaded.resize_token_embeddings(67)
    expected = logits(PeftModel.from_pretrained(loaded, adapter))
    assert expected.shape[-1] == 67
    assert (logits(ours) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_resizing_is_refused_where_it_would_not_be_whole(tmp_path: Path) -> None:
    config = LLAMA | {"tie_word_embeddings": False}
    head, grown = torch.randn(12, 6), {E: torch.randn(14, 6), "lm_head.weight": torch.randn(14, 6)}
    base = write_checkpoint(tmp_path / "base", weights(**{"lm_head.weight": head}), config=config)
    good = write_adapter(tmp_path / "good", grown)
    half = write_adapter(tmp_path / "half", {E: grown[E]})
    uneven = write_adapter(tmp_path / "uneven", {E: grown[E], "lm_head.weight": torch.randn(15, 6)})
    other = write_adapter(tmp_path / "other", lora_factors("model.layers.0.q", (6, 6)))
    before = snapshot(tmp_path)
    with pytest.raises(UnsupportedError, match=r"from 12 to 14 rows, but not lm_head\.weight, which is F32 12×6"):
        adaptertool.merge(base, [half], tmp_path / "out")
    with pytest.raises(MismatchError, match="different sizes"):
        adaptertool.merge(base, [uneven], tmp_path / "out")
    with pytest.raises(UnsupportedError, match=r"with weight 0\.5"):
        adaptertool.merge(base, [good], tmp_path / "out", weights=[0.5])
    with pytest.raises(UnsupportedError, match="give it first"):
        adaptertool.merge(base, [other, good], tmp_path / "out")
    with pytest.raises(UnsupportedError, match="between embeddings of different sizes"):
        adaptertool.wise(base, good, tmp_path / "out", 0.5)
    assert snapshot(tmp_path) == before
    adaptertool.merge(base, [good, other], tmp_path / "out")
    found = load(tmp_path / "out")
    assert same_bits(found[E], grown[E].bfloat16())
    assert same_bits(found["lm_head.weight"], grown["lm_head.weight"])
    adaptertool.wise(base, good, tmp_path / "one", 1)
    assert same_bits(load(tmp_path / "one")["lm_head.weight"], grown["lm_head.weight"])
    nowhere = write_checkpoint(
        tmp_path / "nowhere", weights(**{"lm_head.weight": head}), config=config | {"vocab_size": 9}
    )
    with pytest.raises(MismatchError, match="must be 12×6"):
        adaptertool.merge(nowhere, [good], tmp_path / "no")


def test_nan_in_a_resized_embedding(tmp_path: Path) -> None:
    config = LLAMA | {"tie_word_embeddings": True}
    base = write_checkpoint(tmp_path / "base", weights(), config=config)
    grown = torch.randn(14, 6).bfloat16()
    grown[13, 5] = float("nan")
    with pytest.raises(adaptertool.AdapterToolError, match="holds nan"):
        adapter = write_adapter(tmp_path / "a", {E: grown}, ensure_weight_tying=True)
        adaptertool.merge(base, [adapter], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", [E, "lm_head.weight"])
def test_one_tied_end_of_another_size(tmp_path: Path, end: str) -> None:
    """What the other end is to become is not in the file, unless the adapter says that it ties them."""
    base = write_checkpoint(tmp_path / "base", weights(), config=LLAMA)
    grown = {end: torch.randn(14, 6).bfloat16()}
    with pytest.raises(UnsupportedError, match="from 12 to 14 rows, but not"):
        adaptertool.merge(base, [write_adapter(tmp_path / "one", grown)], tmp_path / "no")
    adaptertool.merge(base, [write_adapter(tmp_path / "both", grown, ensure_weight_tying=True)], tmp_path / "out")
    assert load(tmp_path / "out").keys() == load(base).keys()
    assert same_bits(load(tmp_path / "out")[E], grown[end])
    assert is_tied(tmp_path / "out")


def test_what_else_has_a_number_for_each_token(tmp_path: Path) -> None:
    """Bart's final_logits_bias (1, V) is a buffer that no adapter holds; the bias of a head can be saved with it."""
    config = LLAMA | {FLAG: False}
    ends = {E: torch.randn(12, 6), "lm_head.weight": torch.randn(12, 6)}
    grown = {name: torch.randn(14, 6) for name in ends}
    base = write_checkpoint(tmp_path / "bart", ends | {"final_logits_bias": torch.zeros(1, 12)}, config=config)
    with pytest.raises(UnsupportedError, match="not final_logits_bias, which is F32 1×12"):
        adaptertool.merge(base, [write_adapter(tmp_path / "a", grown)], tmp_path / "no")
    base = write_checkpoint(tmp_path / "phi", ends | {"lm_head.bias": torch.zeros(12)}, config=config)
    with pytest.raises(UnsupportedError, match=r"not lm_head\.bias, which is F32 12"):
        adaptertool.merge(base, [write_adapter(tmp_path / "b", grown)], tmp_path / "no")
    grown["lm_head.bias"] = torch.randn(14)
    adaptertool.merge(base, [write_adapter(tmp_path / "c", grown)], tmp_path / "out")
    assert all(same_bits(load(tmp_path / "out")[name], tensor) for name, tensor in grown.items())


def test_a_head_with_bias_resized_by_peft(tmp_path: Path) -> None:
    model = build("PhiForCausalLM", TEXT | {FLAG: False})
    model.save_pretrained(tmp_path / "base")
    grown = copy.deepcopy(model)
    grown.resize_token_embeddings(67)
    adapter = adapt(grown, tmp_path / "adapter", target_modules=["q_proj"], save=True)
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "base", dtype=torch.float64)
    loaded.resize_token_embeddings(67)
    expected = logits(PeftModel.from_pretrained(loaded, adapter))
    ours = logits(type(model).from_pretrained(tmp_path / "out", dtype=torch.float64))
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("key", ["pad_token_id", "bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("ids", [11, [3, 10]])
def test_a_vocabulary_that_shrinks_below_a_token_that_is_needed(tmp_path: Path, key: str, ids: int | list[int]) -> None:
    base = write_checkpoint(tmp_path / "base", weights(), config=LLAMA | {key: ids})
    shrunk = write_adapter(tmp_path / "a", {E: torch.randn(10, 6)}, ensure_weight_tying=True)
    with pytest.raises(UnsupportedError, match=f"has {key} .*makes the vocabulary 10"):
        adaptertool.merge(base, [shrunk], tmp_path / "no")
    enough = write_adapter(tmp_path / "b", {E: torch.randn(13, 6)}, ensure_weight_tying=True)
    adaptertool.merge(base, [enough], tmp_path / "out")


def test_vocab_size_in_several_parts_of_a_config(tmp_path: Path) -> None:
    nested = {"text_config": {"vocab_size": 12, "deeper": {"vocab_size": 12}}, "audio_config": {"vocab_size": 9}}
    grown = write_adapter(tmp_path / "a", {E: torch.randn(14, 6)}, ensure_weight_tying=True)
    base = write_checkpoint(tmp_path / "base", weights(), config=LLAMA | nested)
    adaptertool.merge(base, [grown], tmp_path / "out")
    new = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (new["vocab_size"], new["text_config"]["vocab_size"], new["audio_config"]["vocab_size"]) == (14, 14, 9)
    assert new["text_config"]["deeper"]["vocab_size"] == 14
    nested["audio_config"]["vocab_size"] = 12
    base = write_checkpoint(tmp_path / "two", weights(), config=LLAMA | nested)
    with pytest.raises(UnsupportedError, match="in several parts; which is that of"):
        adaptertool.merge(base, [grown], tmp_path / "no")
