"""Bases whose weights are not what they seem: tied, quantised, stored transposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tensors, lora_factors
from peft_files import BASE, C_PROJ, UNTIED, Q, adapter, base_of, edits, refusal
from safetensors.torch import save_file

from adaptertool.errors import InputError, MismatchError, UnsupportedError

# Bases whose weights are not what they seem.


TIES = [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": None}, {"tie_word_embeddings": "false"},
        {"tie_word_embeddings": 0}, {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}},
        {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, {"text_config": {}}]  # fmt: skip
LORA_HEAD = lora_factors("lm_head", (10, 6))


@pytest.mark.parametrize(
    "tensors", [LORA_HEAD, {"lm_head.weight": torch.ones(10, 6)}, {"model.embed_tokens.weight": torch.ones(10, 6)}]
)
@pytest.mark.parametrize("config", TIES, ids=str)
def test_embeddings_that_may_be_tied_are_refused(tmp_path: Path, config: dict[str, Any], tensors: Tensors) -> None:
    base = base_of(tmp_path, {"model_type": "llama"} | config)
    message = refusal(base, adapter(base, tensors), UnsupportedError)
    assert "tie_word_embeddings" in message
    assert "lm_head.weight" in message or "model.embed_tokens.weight" in message


@pytest.mark.parametrize("config", [{"vocab_size": 12}, {"text_config": {"vocab_size": 12}}], ids=str)
def test_output_head_of_another_name_is_known_by_its_size(tmp_path: Path, config: dict[str, Any]) -> None:
    base = base_of(tmp_path, {"model_type": "bert"} | config)
    assert "score.weight" in refusal(base, adapter(base, lora_factors("score", (12, 6))), UnsupportedError)


@pytest.mark.parametrize(
    "config",
    [UNTIED, UNTIED | {"text_config": {"tie_word_embeddings": False}}],
    ids=str,
)
def test_untied_embeddings_are_edited(tmp_path: Path, config: dict[str, Any]) -> None:
    base = base_of(tmp_path, {"model_type": "llama"} | config)
    assert edits(base, adapter(base, LORA_HEAD)).keys() == {"lm_head.weight"}


def test_other_layers_of_a_tied_model_are_edited(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"model_type": "llama", "tie_word_embeddings": True, "vocab_size": 10})
    assert edits(base, adapter(base)).keys() == {f"{Q}.weight"}


@pytest.mark.parametrize(
    "config",
    [{"vocab_size": [10]}, {"vocab_size": {}}, {"model_type": ["llama"]}, {"model_type": {}}, {"text_config": []},
     {"text_config": "x"}, {"quantization_config": "x"}, {"quantization_config": ["x"]}],
    ids=str,
)  # fmt: skip
def test_config_of_the_base_with_odd_types_gives_no_traceback(tmp_path: Path, config: dict[str, Any]) -> None:
    base = base_of(tmp_path, {"tie_word_embeddings": False} | config)
    try:
        edits(base, adapter(base))
    except InputError as error:
        assert str(base) in str(error)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, torch.int32])
def test_base_quantised_by_its_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    base = base_of(tmp_path, UNTIED, BASE | {f"{Q}.weight": torch.zeros(8, 6).to(dtype)})
    message = refusal(base, adapter(base), UnsupportedError)
    assert f"{Q}.weight looks quantised (it is stored as " in message


@pytest.mark.parametrize(
    "sibling",
    ["weight_scale", "weight_scale_inv", "weight_scale_2", "weight_scales", "weight_global_scale", "weight.absmax",
     "weight.quant_map", "weight.quant_state.bitsandbytes__nf4", "weight.nested_absmax", "SCB", "weight.SCB",
     "weight_format", "qweight", "qzeros", "g_idx", "weight_packed", "weight_zero_point", "weight_g_idx", "scales",
     "W_q", "weight._data", "weight._scale", "weight_qdata", "input_scale", "qscale_weight"],
)  # fmt: skip
def test_base_quantised_by_what_stands_beside_it(tmp_path: Path, sibling: str) -> None:
    base = base_of(tmp_path, UNTIED, BASE | {f"{Q}.{sibling}": torch.zeros(8)})
    message = refusal(base, adapter(base), UnsupportedError)
    assert f"{Q}.{sibling} stands beside it" in message


def test_packed_base_is_called_quantised_and_not_another_model(tmp_path: Path) -> None:
    """bitsandbytes stores 4-bit weights as a column of bytes, so their shape is not that of the layer."""
    packed = {f"{Q}.weight": torch.zeros(24, 1, dtype=torch.uint8), f"{Q}.weight.absmax": torch.zeros(1)}
    base = base_of(tmp_path, UNTIED | {"quantization_config": {"quant_method": "bitsandbytes"}}, BASE | packed)
    assert "looks quantised" in refusal(base, adapter(base), UnsupportedError)


def test_base_that_has_only_packed_weights_is_called_quantised(tmp_path: Path) -> None:
    """GPTQ and AWQ have no `weight` at all."""
    tensors = {name: tensor for name, tensor in BASE.items() if not name.startswith(Q)} | {
        f"{Q}.qweight": torch.zeros(6, 1)
    }
    base = base_of(tmp_path, UNTIED | {"quantization_config": {"quant_method": "gptq"}}, tensors)
    assert "quantised" in refusal(base, adapter(base))


def transposed(base: Path, tensors: Tensors, **config: Any) -> bool:
    (chain,) = edits(base, adapter(base, tensors, **config)).values()
    return chain[0].transposed


@pytest.mark.parametrize("claim", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"])
def test_families_that_store_layers_transposed(tmp_path: Path, family: str, claim: bool) -> None:
    """Shapes decide, and where they are square the family and the name; fan_in_fan_out is no evidence."""
    base = base_of(tmp_path, {"model_type": family, "tie_word_embeddings": False})
    assert transposed(base, C_PROJ, fan_in_fan_out=claim)
    assert transposed(base, lora_factors(Q, (6, 8)), fan_in_fan_out=claim)
    assert not transposed(base, lora_factors(Q, (8, 6)), fan_in_fan_out=claim)


@pytest.mark.parametrize("key", ["decoder", "text_config"])
def test_transposing_family_inside_a_composite_model(tmp_path: Path, key: str) -> None:
    """Such as vit-gpt2: the decoder's layers are Conv1D, though model_type says vision-encoder-decoder."""
    config = {"model_type": "vision-encoder-decoder", "tie_word_embeddings": False, key: {"model_type": "gpt2"}}
    assert transposed(base_of(tmp_path, config), C_PROJ)


def test_a_family_that_stores_nothing_transposed(base: Path) -> None:
    """fan_in_fan_out on a Llama is a lie to ignore; factors that only fit turned are for another model."""
    assert not transposed(base, lora_factors(Q, (8, 6)), fan_in_fan_out=True)
    assert "is this adapter for another model?" in refusal(base, adapter(base, lora_factors(Q, (6, 8))), MismatchError)


@pytest.mark.parametrize("config", [None, {}, {"model_type": "brand-new"}], ids=str)
def test_claimed_and_square_without_evidence(tmp_path: Path, config: dict[str, Any] | None) -> None:
    base = base_of(tmp_path, config if config is None else config | {"tie_word_embeddings": False})
    assert "is square" in refusal(base, adapter(base, C_PROJ, fan_in_fan_out=True), UnsupportedError)


@pytest.mark.parametrize("config", [None, {"tie_word_embeddings": False}], ids=["no config", "no model_type"])
def test_square_layer_that_gpt2_would_transpose_without_a_family(tmp_path: Path, config: dict[str, Any] | None) -> None:
    base = base_of(tmp_path, config)
    assert "is square" in refusal(base, adapter(base, C_PROJ), UnsupportedError)


def test_square_layer_in_a_single_file(base: Path) -> None:
    (base / "config.json").unlink()
    assert "is square" in refusal(base / "model.safetensors", adapter(base, C_PROJ), UnsupportedError)


@pytest.mark.parametrize("family", ["gpt_bigcode", "gpt_neo", "starcoder2"])
def test_square_layer_of_a_family_that_does_not_transpose(tmp_path: Path, family: str) -> None:
    base = base_of(tmp_path, UNTIED | {"model_type": family})
    assert edits(base, adapter(base, C_PROJ)).keys() == {"block.c_proj.weight"}


def test_square_layer_of_an_unknown_family_may_be_a_fork_of_gpt2(tmp_path: Path) -> None:
    base = base_of(tmp_path, UNTIED | {"model_type": "jais"})
    assert "is square" in refusal(base, adapter(base, C_PROJ), UnsupportedError)


def test_square_layer_beside_one_that_is_transposed_by_its_shape(tmp_path: Path) -> None:
    """Of a model that says nothing of itself, whose names are not those of GPT-2: the one makes the other doubtful."""
    base = base_of(
        tmp_path, {"tie_word_embeddings": False}, {"a.weight": torch.ones(8, 6), "b.weight": torch.ones(6, 6)}
    )
    assert edits(base, adapter(base, lora_factors("b", (6, 6)))).keys() == {"b.weight"}
    both = lora_factors("a", (6, 8)) | lora_factors("b", (6, 6))
    assert "b.weight is square" in refusal(base, adapter(base, both), UnsupportedError)
    assert edits(base, adapter(base, lora_factors("a", (8, 6)) | lora_factors("b", (6, 6)))).keys() == {
        "a.weight",
        "b.weight",
    }


def test_saved_tensor_of_a_transposing_family_is_taken_as_it_is(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"model_type": "gpt2", "tie_word_embeddings": False})
    assert edits(base, adapter(base, {"block.c_proj.weight": torch.ones(6, 6)})).keys() == {"block.c_proj.weight"}


def test_embedding_in_a_file_without_config(tmp_path: Path) -> None:
    """Nobody says whether the ends are tied."""
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    save_file({name: torch.ones(9, 4) for name in names}, tmp_path / "base.safetensors")
    saved = adapter(tmp_path, {"model.embed_tokens.weight": torch.zeros(9, 4)})
    assert "there is no config.json" in refusal(tmp_path / "base.safetensors", saved, UnsupportedError)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("backbone.embeddings.weight", {"model_type": "mamba", "tie_word_embeddings": True}),
        ("backbone.embedding.weight", {"tie_embeddings": True}),
        ("transformer.x.weight", {"model_type": "xlm", "n_words": 9}),
        ("transformer.word_embedding.weight", {}),
        ("model.embed_tokens.weight", {"text_config": {"tie_word_embeddings": False}}),
        ("model.embed_tokens.weight", {"vision_config": {"tie_word_embeddings": False}, "vocab_size": 6}),
        ("pred_layer.proj.weight", {"vocab_size": 9}),
        ("cls.predictions.decoder.weight", {}),
        ("output.weight", {}),
    ],
)
def test_tied_ends_in_disguise(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    base = base_of(tmp_path, config, {name: torch.ones(9, 4)})
    assert "may be tied" in refusal(base, adapter(base, {name: torch.zeros(9, 4)}), UnsupportedError)


@pytest.mark.parametrize(
    "name",
    ["embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight", "layer.output.dense.weight"],
)
def test_what_nothing_ties_is_edited(tmp_path: Path, name: str) -> None:
    base = base_of(tmp_path, {"model_type": "bert"}, {name: torch.ones(9, 4)})
    assert edits(base, adapter(base, {name: torch.zeros(9, 4)})).keys() == {name}


def test_config_nested_very_deep(tmp_path: Path) -> None:
    config: dict[str, Any] = {}
    for _ in range(900):
        config = {"part": config}
    base = base_of(tmp_path, config | UNTIED)
    assert edits(base, adapter(base))
