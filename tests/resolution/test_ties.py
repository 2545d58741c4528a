"""Tied embeddings: each end gets its own change, as in PEFT's unmerged model.

PEFT's merge is no oracle here: it changes both ends by either change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from models import TEXT, build
from oracle import half_ulp_excess
from safetensors.torch import load_file, save_file
from tied_models import FLAG, LLAMA, MODELS, E, adapt, check, is_tied, saved, weights

import adaptertool
from adaptertool.errors import MismatchError, UnsupportedError


@pytest.mark.long("name")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("which", ["embedding", "head", "both"])
def test_lora_on_either_end(tmp_path: Path, name: str, which: str) -> None:
    _, embedding, head = MODELS[name]
    model = saved(tmp_path, name, max_shard_size="40KB")
    targets = {"embedding": [embedding], "head": [head], "both": [embedding, head]}[which]
    report = check(tmp_path, model, adapt(model, tmp_path / "adapter", target_modules=targets))
    assert not is_tied(tmp_path / "out")
    assert any("stored apart, and config.json says tie_word_embeddings: false" in note for note in report.notes)


@pytest.mark.parametrize("which", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_change_for_both_is_made_once(tmp_path: Path, which: list[str], dtype: torch.dtype) -> None:
    """ensure_weight_tying: the factors of both ends are the same, transposed; the output stays tied."""
    model = saved(tmp_path, "LlamaForCausalLM", dtype)
    adapter = adapt(model, tmp_path / "adapter", target_modules=which, ensure_weight_tying=True)
    files = load_file(adapter / "adapter_model.safetensors")
    assert any("lm_head.lora_A" in key for key in files)
    report = adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    assert is_tied(tmp_path / "out")
    assert any("are changed alike, and stay tied" in note for note in report.notes)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert load(tmp_path / "out").keys() == load(tmp_path / "base").keys()
    assert "config.json" in names
    weight = load(tmp_path / "base")["model.embed_tokens.weight"].double()
    prefix = "base_model.model."
    weight = files.get(f"{prefix}model.embed_tokens.base_layer.weight", weight).double()
    a, b = (files[f"{prefix}model.embed_tokens.lora_embedding_{part}"].double() for part in "AB")
    exact = weight + (b @ a).T * 4
    assert half_ulp_excess(load(tmp_path / "out")["model.embed_tokens.weight"], exact).max() <= 1 + 1e-6


def test_pairs_that_came_apart_go_each_to_its_own_end(tmp_path: Path) -> None:
    """ensure_weight_tying says that they are one, but the numbers differ (PEFT on a 16-bit base): numbers count."""
    model = saved(tmp_path, "LlamaForCausalLM")
    adapter = adapt(model, tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True)
    path = adapter / "adapter_model.safetensors"
    files = load_file(path)
    files["base_model.model.lm_head.lora_A.weight"][0, 0] += 1
    save_file(files, path)
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    found, base = load(tmp_path / "out"), load(tmp_path / "base")["model.embed_tokens.weight"].double()
    prefix = "base_model.model.lm_head"
    base = files.get(f"{prefix}.base_layer.weight", base).double()
    head = base + files[f"{prefix}.lora_B.weight"].double() @ files[f"{prefix}.lora_A.weight"].double() * 4
    assert half_ulp_excess(found["lm_head.weight"], head).max() <= 1 + 1e-6
    assert not same_bits(found["lm_head.weight"], found["model.embed_tokens.weight"])


@pytest.mark.parametrize("which", [["embed_tokens"], ["lm_head"], ["lm_head", "embed_tokens"]])
@pytest.mark.parametrize("tying", [False, True])
def test_saved_ends(tmp_path: Path, which: list[str], tying: bool) -> None:
    model = saved(tmp_path, "LlamaForCausalLM")
    adapter = adapt(
        model, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=which, ensure_weight_tying=tying
    )
    check(tmp_path, model, adapter)
    assert is_tied(tmp_path / "out") == tying


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_one_end_of_an_adapter_that_ties_its_changes(tmp_path: Path, module: str) -> None:
    base = write_checkpoint(tmp_path / "base", {E: torch.randn(12, 6)}, config=LLAMA)
    factors = lora_factors(module, (12, 6))
    adaptertool.merge(base, [write_adapter(tmp_path / "a", factors, ensure_weight_tying=True)], tmp_path / "out")
    assert is_tied(tmp_path / "out")
    a, b = (factors[f"{module}.lora_{part}.weight"].double() for part in "AB")
    assert half_ulp_excess(load(tmp_path / "out")[E], load(base)[E].double() + b @ a * 2).max() <= 1 + 1e-6


def test_token_rows_go_to_both_ends(tmp_path: Path) -> None:
    model = saved(tmp_path, "LlamaForCausalLM")
    adapter = adapt(model, tmp_path / "adapter", target_modules=["q_proj"], trainable_token_indices=[3, 8, 13])
    check(tmp_path, model, adapter)
    assert is_tied(tmp_path / "out")


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("tokens", [[3, 8], {"embed_tokens": [3, 8], "lm_head": [3, 8]}], ids=["list", "both named"])
def test_token_rows_that_peft_saves_once_or_with_the_whole_embedding(tmp_path: Path, save: bool, tokens: Any) -> None:
    model = saved(tmp_path, "LlamaForCausalLM")
    adapter = adapt(model, tmp_path / "adapter", target_modules=["q_proj"], trainable_token_indices=tokens, save=save)
    keys = load_file(adapter / "adapter_model.safetensors")
    assert any("token_adapter.base_layer" in key for key in keys) == save
    check(tmp_path, model, adapter)
    assert is_tied(tmp_path / "out")


def test_rows_on_a_saved_embedding(tmp_path: Path) -> None:
    """X.token_adapter.base_layer.weight takes the place of the base's, and the rows are put into that."""
    base = write_checkpoint(tmp_path / "base", {E: torch.randn(12, 6)}, config=LLAMA)
    tuned, rows = torch.randn(12, 6), torch.randn(2, 6)
    keys = {"base_layer.weight": tuned, "trainable_tokens_delta": rows}
    tensors = {f"model.embed_tokens.token_adapter.{key}": tensor for key, tensor in keys.items()}
    adapter = write_adapter(tmp_path / "a", tensors, trainable_token_indices=[7, 2], ensure_weight_tying=True)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    tuned[[7, 2]] = rows
    assert same_bits(load(tmp_path / "out")[E], tuned)


def test_one_set_of_rows_for_two_ends_that_are_not_tied(tmp_path: Path) -> None:
    """Then the other set was lost."""
    ends = {E: torch.randn(12, 6), "lm_head.weight": torch.randn(12, 6)}
    base = write_checkpoint(tmp_path / "base", ends, config=LLAMA | {FLAG: False})
    tokens = {"embed_tokens": [7, 2], "lm_head": [7, 2]}
    key = "model.embed_tokens.token_adapter.trainable_tokens_delta"
    adapter = write_adapter(tmp_path / "a", {key: torch.randn(2, 6)}, trainable_token_indices=tokens)
    with pytest.raises(MismatchError, match="for both ends of a tied model"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


@pytest.mark.parametrize("tied", [False, True])
def test_modules_to_save_and_the_whole_embeddings(tmp_path: Path, tied: bool) -> None:
    """Each is saved three times: as X, as X.modules_to_save, and what the base had as X.original_module."""
    model = build("LlamaForCausalLM", TEXT | {FLAG: tied})
    model.tie_weights()
    model.save_pretrained(tmp_path / "base")
    options: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}
    adapter = adapt(model, tmp_path / "adapter", save=True, **options)
    report = check(tmp_path, model, adapter)
    assert sum("is not needed: it is the same as" in note for note in report.notes) == 2
    assert sum("is not needed: it is what the base had" in note for note in report.notes) == 2
    adaptertool.wise(tmp_path / "base", adapter, tmp_path / "half", 0.5, as_adapter=True)
    assert not any("modules_to_save" in key or "original_module" in key for key in load(tmp_path / "half"))
    adaptertool.merge(tmp_path / "base", [tmp_path / "half"], tmp_path / "merged")
    adaptertool.wise(tmp_path / "base", adapter, tmp_path / "direct", 0.5)
    for name, tensor in load(tmp_path / "direct").items():
        assert torch.allclose(load(tmp_path / "merged")[name], tensor, atol=1e-7)
    path = adapter / "adapter_model.safetensors"
    files = load_file(path)
    files["base_model.model.lm_head.modules_to_save.weight"][0, 0] += 1
    save_file(files, path)
    with pytest.raises(adaptertool.AdapterToolError, match=r"are both saved for lm_head\.weight, and differ"):
        adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "no")


def test_token_rows_and_a_change_of_the_head(tmp_path: Path) -> None:
    """The rows belong to both ends, the LoRA to the head alone."""
    weight, rows = torch.randn(12, 6), torch.randn(2, 6)
    base = write_checkpoint(tmp_path / "base", {"model.embed_tokens.weight": weight}, config=LLAMA)
    one = write_adapter(
        tmp_path / "rows",
        {"model.embed_tokens.token_adapter.trainable_tokens_delta": rows},
        trainable_token_indices=[7, 2],
    )
    factors = lora_factors("lm_head", (12, 6))
    adaptertool.merge(base, [one, write_adapter(tmp_path / "head", factors)], tmp_path / "out")
    replaced = weight.clone()
    replaced[[7, 2]] = rows
    found = load(tmp_path / "out")
    assert same_bits(found["model.embed_tokens.weight"], replaced)
    a, b = (factors[f"lm_head.lora_{part}.weight"].double() for part in "AB")
    assert half_ulp_excess(found["lm_head.weight"], replaced.double() + b @ a * 2).max() <= 1 + 1e-6


@pytest.mark.parametrize("head", [[3, 6], [4, 7], [7, 3, 9]])
def test_both_ends_have_token_rows_of_their_own(tmp_path: Path, head: list[int]) -> None:
    """Rows of the embedding go to the head as well only where the adapter has none for the head."""
    model = saved(tmp_path, "LlamaForCausalLM")
    tokens = {"embed_tokens": [3, 8], "lm_head": head}
    check(tmp_path, model, adapt(model, tmp_path / "a", target_modules=["q_proj"], trainable_token_indices=tokens))
    assert not is_tied(tmp_path / "out")


def test_an_adapter_that_ties_its_change_and_one_that_does_not(tmp_path: Path) -> None:
    """What the first means for both ends is below what the second does to one."""
    weight, tuned = torch.randn(12, 6), torch.randn(12, 6)
    base = write_checkpoint(tmp_path / "base", {E: weight}, config=LLAMA)
    tying = write_adapter(tmp_path / "tying", {E: tuned}, ensure_weight_tying=True)
    factors = lora_factors("lm_head", (12, 6))
    head = write_adapter(tmp_path / "head", factors)
    a, b = (factors[f"lm_head.lora_{part}.weight"].double() for part in "AB")
    for adapters in ([tying, head], [head, tying]):
        out = tmp_path / f"out-{adapters[0].name}"
        adaptertool.merge(base, adapters, out)
        found = load(out)
        assert same_bits(found[E], tuned)
        exact = tuned.double() + (b @ a * 2 if adapters[1] == head else 0)
        assert half_ulp_excess(found["lm_head.weight"], exact).max() <= 1 + 1e-6


@pytest.mark.parametrize("flag", [True, None, False])
def test_a_base_saved_without_its_head(tmp_path: Path, flag: bool | None) -> None:
    """Loaded with a head, that may be the embedding: an edit for the embedding alone would move it too."""
    config = {"architectures": ["LlamaModel"], "model_type": "llama"} | ({} if flag is None else {FLAG: flag})
    weight, tuned, rows = torch.randn(12, 6), torch.randn(12, 6), torch.randn(2, 6)
    base = write_checkpoint(tmp_path / "base", {"embed_tokens.weight": weight}, config=config)
    for number, tensors in enumerate(({E: tuned}, lora_factors("model.embed_tokens", (12, 6)))):
        adapter = write_adapter(tmp_path / f"a{number}", tensors)
        if flag is False:
            adaptertool.merge(base, [adapter], tmp_path / f"out{number}")
            assert not same_bits(load(tmp_path / f"out{number}")["embed_tokens.weight"], weight)
        else:
            with pytest.raises(UnsupportedError, match="saved without the head"):
                adaptertool.merge(base, [adapter], tmp_path / "no")
    key = "model.embed_tokens.token_adapter.trainable_tokens_delta"
    tokens = write_adapter(tmp_path / "rows", {key: rows}, trainable_token_indices=[7, 2])
    adaptertool.merge(base, [tokens], tmp_path / "out")
    assert same_bits(load(tmp_path / "out")["embed_tokens.weight"][[7, 2]], rows)


@pytest.mark.parametrize("shards", [1, 3])
def test_what_else_the_output_holds(tmp_path: Path, shards: int) -> None:
    """All other tensors keep their bytes; the index knows the new one; loaders find everything."""
    tensors = weights()
    config = LLAMA | {"text_config": {"tie_word_embeddings": True, "x": 1e-05}, "other": {"y": 500000.0}}
    base = write_checkpoint(tmp_path / "base", tensors, shards=shards, config=config)
    before = snapshot(base)
    adapter = write_adapter(tmp_path / "a", lora_factors("lm_head", (12, 6)))
    adaptertool.merge(base, [adapter], tmp_path / "out", threads=2)
    assert snapshot(base) == before
    found = load(tmp_path / "out")
    assert found.keys() == tensors.keys() | {"lm_head.weight"}
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())
    new = json.loads((tmp_path / "out" / "config.json").read_text())
    untied = {"tie_word_embeddings": False}
    assert new == config | untied | {"text_config": config["text_config"] | untied}
    if shards > 1:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == found.keys()
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
        for name, shard in index["weight_map"].items():
            assert name in load(tmp_path / "out" / shard)
    header = next(p for p in (tmp_path / "out").glob("*.safetensors") if "lm_head.weight" in load(p)).read_bytes()
    length = int.from_bytes(header[:8], "little")
    fields = json.loads(header[8 : 8 + length])
    assert length % 8 == 0
    assert fields["__metadata__"] == {"format": "pt"}
    sizes = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1}
    assert all(f["data_offsets"][0] % sizes[f["dtype"]] == 0 for name, f in fields.items() if name != "__metadata__")


def test_wise_on_one_end(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", weights(), config=LLAMA)
    factors = lora_factors("lm_head", (12, 6))
    adapter = write_adapter(tmp_path / "a", factors)
    adaptertool.wise(base, adapter, tmp_path / "out", "0,0.25,1")
    weight = load(base)[E]
    a, b = (factors[f"lm_head.lora_{part}.weight"].double() for part in "AB")
    for alpha, folder in ((0.0, "alpha-0.000"), (0.25, "alpha-0.250"), (1.0, "alpha-1.000")):
        found = load(tmp_path / "out" / folder)
        assert half_ulp_excess(found["lm_head.weight"], weight.double() + b @ a * 2 * alpha).max() <= 1 + 1e-6
        assert same_bits(found[E], weight)


@pytest.mark.parametrize("alike", [True, False])
def test_saved_ends_as_an_adapter(tmp_path: Path, alike: bool) -> None:
    """Two that are the same are changed once in a checkpoint, and stay two in an adapter."""
    base = write_checkpoint(tmp_path / "base", {E: torch.randn(12, 6)}, config=LLAMA)
    tensors = {E: torch.randn(12, 6), "lm_head.weight": torch.randn(12, 6)}
    if alike:
        tensors["lm_head.weight"] = tensors[E].clone()
    adapter = write_adapter(tmp_path / "a", tensors)
    report = adaptertool.wise(base, adapter, tmp_path / "half", 0.5, as_adapter=True)
    found, weight = load(tmp_path / "half"), load(base)[E]
    assert len(found) == 2
    for name, tensor in tensors.items():
        assert torch.allclose(found[PREFIX + name], (weight + tensor) / 2)
    assert any("a merge of OUT stores them apart" in note for note in report.notes) != alike
    assert not any("stored apart" in note for note in report.notes)
    adaptertool.wise(base, adapter, tmp_path / "zero", 0)
    assert same_bits(load(tmp_path / "zero")[E], weight)
    assert alike or same_bits(load(tmp_path / "zero")["lm_head.weight"], weight)


def test_untied_and_unknown_architectures(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors("model.embed_tokens", (12, 6)))
    head = {"lm_head.weight": torch.randn(12, 6)}
    untied = write_checkpoint(tmp_path / "untied", weights(**head), config=LLAMA | {"tie_word_embeddings": False})
    adaptertool.merge(untied, [adapter], tmp_path / "out")
    assert same_bits(load(tmp_path / "out")["lm_head.weight"], head["lm_head.weight"])
    refused: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = [
        (LLAMA | {"architectures": ["NeverHeardOf"]}, {}),
        (LLAMA | {"architectures": ["T5ForConditionalGeneration"]}, {}),  # there the flag scales the output as well
        (LLAMA | {"text_config": {"tie_word_embeddings": False}}, {}),
        (LLAMA, head),  # tied, and stored twice: which of the two counts?
    ]
    for number, (config, more) in enumerate(refused):
        base = write_checkpoint(tmp_path / f"base{number}", weights(**more), config=config)
        with pytest.raises(UnsupportedError, match="may be tied"):
            adaptertool.merge(base, [adapter], tmp_path / "no")
    with pytest.raises(UnsupportedError, match="may be tied"):
        adaptertool.merge(tmp_path / "base0" / "model.safetensors", [adapter], tmp_path / "no.safetensors")


def test_an_architecture_that_ties_nothing_needs_no_flag(tmp_path: Path) -> None:
    config = {"architectures": ["Wav2Vec2ForCTC"], "model_type": "wav2vec2", "vocab_size": 12}
    base = write_checkpoint(tmp_path / "base", {"lm_head.weight": torch.randn(12, 6)}, config=config)
    adapter = write_adapter(tmp_path / "a", lora_factors("lm_head", (12, 6)))
    assert adaptertool.merge(base, [adapter], tmp_path / "out").tensors_edited == 1
