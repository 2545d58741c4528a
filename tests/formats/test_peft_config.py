"""The config of a PEFT adapter: each field that PEFT knows is acted on, harmless, or refused by name."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import lora_factors
from peft_files import Q, adapter, edits, refusal

from adaptertool.errors import UnsupportedError

# The config, field by field.

PASSING: dict[str, Any] = {
    "task_type": "CAUSAL_LM", "auto_mapping": {"base_model_class": "X"}, "peft_version": "0.99", "revision": "main",
    "base_model_name_or_path": "/etc/../nowhere", "inference_mode": True, "target_modules": ["q_proj"],
    "exclude_modules": ["k_proj"], "lora_dropout": 0.5, "modules_to_save": ["norm"], "layers_to_transform": [0],
    "layers_pattern": "layers", "megatron_core": "other.core", "qalora_group_size": 32, "init_lora_weights": "gaussian",
    "runtime_config": {"ephemeral_gpu_offload": True}, "loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 2.0},
    "corda_config": {"x": 1}, "lora_ga_config": {"x": 1}, "bias": "all",
    "velora_config": {"num_groups": 2}, "monteclora_config": {"num_samples": 2},
}  # fmt: skip
# What must be in the file where the field is set
MAGNITUDE = {f"{Q}.lora_magnitude_vector": torch.ones(8)}
TOKENS = {"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 6)}
WITH_FIELD = {"use_dora": MAGNITUDE, "lora_bias": {f"{Q}.lora_B.bias": torch.ones(8)},
              "kasa_config": {f"{Q}.lora_diag": torch.ones(4)}}  # fmt: skip
ACTED_ON: dict[str, tuple[Any, float]] = {  # value -> the scale that it gives for rank 4 and alpha 8
    "peft_type": ("LORA", 2.0), "r": (4, 2.0), "lora_alpha": (2, 0.5), "use_rslora": (True, 4.0),
    "rank_pattern": ({"q_proj": 4}, 2.0), "alpha_pattern": ({"q_proj": 4}, 1.0), "use_dora": (True, 2.0),
    "lora_bias": (True, 2.0), "trainable_token_indices": ([1, 2], 2.0), "fan_in_fan_out": (True, 2.0),
    "target_parameters": (["q_proj.weight"], 2.0), "ensure_weight_tying": (True, 2.0),
    "use_bdlora": ({"nblocks": 2, "target_modules_bd_a": ["k_proj"]}, 2.0),
    "kasa_config": ({"beta": 0.1}, 1.0),  # of what is taken away, which comes first
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "megatron_config": {"x": 1},
    "alora_invocation_tokens": [1], "use_qalora": True, "layer_replication": [[0, 1]],
    "arrow_config": {"top_k": 2},
}  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(peft.LoraConfig)]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_that_peft_knows_is_acted_on_harmless_or_refused_by_name(base: Path, name: str) -> None:
    """A new version of PEFT with a new field fails here: read what it does, then give it a place above."""
    assert [name in table for table in (PASSING, ACTED_ON, REFUSED)].count(True) == 1, f"{name} has no place"
    if name in REFUSED:
        message = refusal(base, adapter(base, **{name: REFUSED[name]}), UnsupportedError)
        assert f"adapter_config.json: {name} = " in message
        assert "not known" not in message  # each has a reason of its own
        return
    value, scale = ACTED_ON.get(name) or (PASSING[name], 2.0)
    more = TOKENS if name == "trainable_token_indices" else WITH_FIELD.get(name, {})
    tensors = {**lora_factors(Q, (8, 6)), **more}
    assert edits(base, adapter(base, tensors, **{name: value}))[f"{Q}.weight"][0].scale == scale


OF_OTHER_TRAINERS: dict[str, Any] = {
    "lora_dtype": "bfloat16", "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-6, "lora_plus_lr_ratio": 16.0,
    "loraplus_lr_ratio": 16.0, "loraplus_lr_embedding": 1e-6, "swift_type": "LORA", "merge_weights": True,
    "unsloth_version": "2025.1", "auto_mapping": {"base_model_class": "X", "unsloth_fixed": True},
}  # fmt: skip


@pytest.mark.parametrize("name", OF_OTHER_TRAINERS)
def test_fields_of_other_trainers_that_touch_no_arithmetic(base: Path, name: str) -> None:
    assert edits(base, adapter(base, **{name: OF_OTHER_TRAINERS[name]}))[f"{Q}.weight"][0].scale == 2.0


@pytest.mark.parametrize(
    ("name", "value"), [("swift_type", "LONGLORA"), ("use_qa_lora", True), ("enable_lora", [True, False]),
                        ("lora_scale", 2.0), ("lora_dtypes", "bf16")],
)  # fmt: skip
def test_fields_of_other_trainers_that_may_touch_it(base: Path, name: str, value: object) -> None:
    assert f"{name}" in refusal(base, adapter(base, **{name: value}), UnsupportedError)


@pytest.mark.parametrize("config", [{"lora_alpha": "8"}, {"r": "4"}, {"alpha_pattern": {"q_proj": " 1.5e1"}}], ids=str)
def test_numbers_as_text(base: Path, config: dict[str, Any]) -> None:
    assert "take away the quotation marks" in refusal(base, adapter(base, **config))
    assert "quotation" not in refusal(base, adapter(base, lora_alpha="eight"))


@pytest.mark.parametrize("name", WITH_FIELD)
def test_field_and_file_must_agree(base: Path, name: str) -> None:
    (role,) = WITH_FIELD[name]
    assert f"has no {role.removeprefix(Q + '.')}" in refusal(base, adapter(base, **{name: True}))
    unannounced = adapter(base, {**lora_factors(Q, (8, 6)), **WITH_FIELD[name]})
    assert f"has {role.removeprefix(Q + '.')}, which adapter_config.json does not announce" in refusal(
        base, unannounced
    )


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([1, 2, 3], "must be 3×6"),
        ([1, 10], "has 10 rows, but"),
        ({"embed_tokens": [1, 2], "lm_head": [1]}, "holds 1 sets of token rows, but its config names 2"),
        ({"lm_head": [1, 2]}, "has no rows in trainable_token_indices"),
        (None, "has no rows in trainable_token_indices"),
        *((wrong, "must list row numbers") for wrong in ([1, 1], [-1, 2], [1.5, 2], ["1", 2], [True, 2], 7, "ab")),
    ],
    ids=str,
)
def test_token_rows_that_do_not_fit(base: Path, indices: object, words: str) -> None:
    tokens = adapter(base, {**lora_factors(Q, (8, 6)), **TOKENS}, trainable_token_indices=indices)
    assert words in refusal(base, tokens)


def test_a_config_as_peft_writes_it_passes(base: Path) -> None:
    folder = adapter(base)
    with warnings.catch_warnings(action="ignore"):
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(folder)
    assert set(json.loads((folder / "adapter_config.json").read_text())) >= set(FIELDS) - {"runtime_config"}
    assert edits(base, folder)[f"{Q}.weight"][0].scale == 2.0


@pytest.mark.parametrize("name", ["new_field", "use_Dora", "\x1b[31m"])
@pytest.mark.parametrize("value", [True, 1, 0.5, "x", [0], {"a": None}, "\x1b[31m\n"], ids=ascii)
def test_unknown_field_that_is_set_is_refused(base: Path, name: str, value: object) -> None:
    message = refusal(base, adapter(base, **{name: value}), UnsupportedError)
    assert ascii(name)[1:-1] in message


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}], ids=str)
@pytest.mark.parametrize("name", ["new_field", *REFUSED])
def test_unset_field_is_ignored(base: Path, name: str, value: object) -> None:
    assert edits(base, adapter(base, **{name: value}))


@pytest.mark.parametrize("init", [None, True, False, "gaussian", "eva", "orthogonal", "mica"], ids=str)
def test_initialisers_that_leave_the_base_alone(base: Path, init: object) -> None:
    assert edits(base, adapter(base, init_lora_weights=init))


@pytest.mark.parametrize(
    "init",
    ["pissa", "pissa_niter_16", "olora", "corda", "lora_ga", "loftq", "new", "", "True", [], {}, ["gaussian"]],
    ids=str,
)
def test_initialisers_that_change_the_base_are_refused(base: Path, init: object) -> None:
    message = refusal(base, adapter(base, init_lora_weights=init), UnsupportedError)
    assert f"init_lora_weights = {init}" in message
    assert ("unload().save_pretrained" if init == "loftq" else "path_initial_model_for_weight_conversion") in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("r", value) for value in (None, 0, -4, 4.0, "4", True, [4], 10**400)),
        *(("lora_alpha", value) for value in (None, "8", True, [8], {}, 10**400, -(10**400))),
        *(("use_rslora", value) for value in (1, "true", "false", [True], {"a": 1})),
        *(("rank_pattern", value) for value in ([["q_proj", 4]], "q_proj", 4, True)),
        *(("rank_pattern", {"q_proj": value}) for value in (None, 0, -1, 4.0, "4", True, [4])),
        *(("alpha_pattern", value) for value in ([["q_proj", 4]], "q_proj", 4, True)),
        *(("alpha_pattern", {"q_proj": value}) for value in (None, "8", True, [8], 10**400)),
        *(("bias", value) for value in (None, "some", True, [], {}, "NONE")),
    ],
    ids=lambda value: ascii(value)[:32],
)
def test_wrong_types_in_the_config_are_refused_by_name(base: Path, name: str, value: object) -> None:
    message = refusal(base, adapter(base, **{name: value}))
    # a rank that no factor can have may also be refused where the factor is looked at
    assert f"adapter_config.json: {name}" in message or f"rank {value}" in message


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5000], ids=lambda text: text[:9])
@pytest.mark.parametrize("name", ["lora_alpha", "r"])
def test_numbers_that_are_none(base: Path, name: str, text: str) -> None:
    path = adapter(base, **{name: "@"}) / "adapter_config.json"
    path.write_text(path.read_text().replace('"@"', text))
    assert "adapter_config.json" in refusal(base, path.parent)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"peft_type": "LORA", "peft_type": "LORA"}'])
def test_malformed_config(base: Path, text: str) -> None:
    folder = adapter(base)
    (folder / "adapter_config.json").write_text(text)
    assert "adapter_config.json" in refusal(base, folder)
