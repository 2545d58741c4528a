"""Tied embeddings: each end gets its own change, as in PEFT's unmerged model.

PEFT's merge is no oracle here: it changes both ends by either change.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import PREFIX, load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from models import TEXT, build
from oracle import half_ulp_excess
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tied_models import MODELS, adapt, check, is_tied, logits, saved

import adaptertool
from adaptertool.errors import MismatchError, UnsupportedError


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
