"""PEFT's files, and where their modules lie in the base: each thing not understood to the letter is refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import PREFIX, Tensors, lora_factors, write_adapter, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError
from adaptertool.formats.peft.config import parse_config
from adaptertool.spec.plan import Edit
from adaptertool.tasks.merge import prepare_merge

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
BASE = {
    f"{Q}.weight": torch.zeros(8, 6), f"{Q}.bias": torch.zeros(8), f"{K}.weight": torch.zeros(8, 6),
    "model.layers.0.norm.weight": torch.zeros(6), "model.conv.weight": torch.zeros(4, 4, 3),
    "model.embed_tokens.weight": torch.zeros(10, 6), "lm_head.weight": torch.zeros(10, 6),
    "score.weight": torch.zeros(12, 6), "x+y.weight": torch.zeros(8, 6), "block.c_proj.weight": torch.zeros(6, 6),
}  # fmt: skip
UNTIED = {"model_type": "llama", "tie_word_embeddings": False}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", BASE)


def adapter(base: Path, tensors: Tensors | None = None, **config: Any) -> Path:
    return write_adapter(base.parent / "adapter", lora_factors(Q, (8, 6)) if tensors is None else tensors, **config)


def edits(base: Path, adapter: Path) -> dict[str, tuple[Edit, ...]]:
    plan = prepare_merge(base, [adapter])
    return {step.base.spec.name: step.edits for shard in plan.shards for step in shard.steps if step.edits}


def refusal(base: Path, adapter: Path, kind: type[InputError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        prepare_merge(base, [adapter])
    message = str(caught.value)
    assert all(line.isprintable() for line in message.split("\n"))
    return message


# What is understood.


def test_every_factor_is_used_exactly_once(base: Path) -> None:
    tensors = {
        **lora_factors(Q, (8, 6)), **lora_factors(K, (8, 6)), **lora_factors("score", (12, 6)),
        f"{Q}.base_layer.bias": torch.ones(8), "model.layers.0.norm.weight": torch.ones(6),
        "lm_head.weight": torch.ones(10, 6), "model.conv.weight": torch.ones(4, 4, 3),
    }  # fmt: skip
    found = edits(base, adapter(base, tensors, bias="lora_only", modules_to_save=["norm", "lm_head"]))
    used = [ref.spec.name for many in found.values() for edit in many for ref in edit.factors.values()]
    assert sorted(used) == sorted(PREFIX + key for key in tensors)
    kinds = {name: [edit.kind for edit in many] for name, many in found.items()}
    assert kinds == {
        f"{Q}.weight": ["lora"], f"{K}.weight": ["lora"], "score.weight": ["lora"], f"{Q}.bias": ["full"],
        "model.layers.0.norm.weight": ["full"], "lm_head.weight": ["full"], "model.conv.weight": ["full"],
    }  # fmt: skip


def test_a_saved_weight_comes_before_the_delta_on_it(base: Path) -> None:
    tensors = {**lora_factors(Q, (8, 6)), f"{Q}.base_layer.weight": torch.ones(8, 6)}
    assert [edit.kind for edit in edits(base, adapter(base, tensors))[f"{Q}.weight"]] == ["full", "lora"]


@pytest.mark.parametrize("key", ["weight", "modules_to_save.weight"])
@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ["q_proj"]}])
def test_a_saved_weight_beside_factors_for_it_is_refused(base: Path, key: str, fields: dict[str, Any]) -> None:
    tensors = {**lora_factors(Q, (8, 6)), f"{Q}.{key}": torch.ones(8, 6)}
    message = refusal(base, adapter(base, tensors, **fields), UnsupportedError)
    assert f"{PREFIX}{Q}.{key} is saved whole, and there are factors for {Q}.weight as well" in message


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"lora_alpha": 3}, 0.75),
        ({"lora_alpha": 0.1}, 0.1 / 4),
        ({"lora_alpha": -1}, -0.25),
        ({"use_rslora": True}, 4.0),
        ({"use_rslora": None}, 2.0),
        ({"r": 9, "rank_pattern": {"q_proj": 4}}, 2.0),
        ({"r": 9, "rank_pattern": {"q_proj": 4}, "use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 1}}, 0.25),
        ({"alpha_pattern": {"_proj": 1, "proj": 1, "k_proj": 1, "q": 1, "self_attn": 1, "^q_proj": 1}}, 2.0),
        ({"alpha_pattern": {"^model.*": 16, "q_proj": 1}}, 4.0),
        ({"alpha_pattern": {"self_attn.q_proj": 6, "q_proj": 1}}, 1.5),
        ({"rank_pattern": None, "alpha_pattern": None}, 2.0),
    ],
    ids=str,
)
def test_scale(base: Path, config: dict[str, Any], scale: float) -> None:
    assert edits(base, adapter(base, **config))[f"{Q}.weight"][0].scale == scale


# The config, field by field.

PASSING: dict[str, Any] = {
    "task_type": "CAUSAL_LM", "auto_mapping": {"base_model_class": "X"}, "peft_version": "0.99", "revision": "main",
    "base_model_name_or_path": "/etc/../nowhere", "inference_mode": True, "target_modules": ["q_proj"],
    "exclude_modules": ["k_proj"], "lora_dropout": 0.5, "modules_to_save": ["norm"], "layers_to_transform": [0],
    "layers_pattern": "layers", "megatron_core": "other.core", "qalora_group_size": 32, "init_lora_weights": "gaussian",
    "runtime_config": {"ephemeral_gpu_offload": True}, "loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 2.0},
    "corda_config": {"x": 1}, "lora_ga_config": {"x": 1}, "bias": "all",
}  # fmt: skip
# What must be in the file where the field is set
MAGNITUDE = {f"{Q}.lora_magnitude_vector": torch.ones(8)}
TOKENS = {"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 6)}
WITH_FIELD = {"use_dora": MAGNITUDE, "lora_bias": {f"{Q}.lora_B.bias": torch.ones(8)}}
ACTED_ON: dict[str, tuple[Any, float]] = {  # value -> the scale that it gives for rank 4 and alpha 8
    "peft_type": ("LORA", 2.0), "r": (4, 2.0), "lora_alpha": (2, 0.5), "use_rslora": (True, 4.0),
    "rank_pattern": ({"q_proj": 4}, 2.0), "alpha_pattern": ({"q_proj": 4}, 1.0), "use_dora": (True, 2.0),
    "lora_bias": (True, 2.0), "trainable_token_indices": ([1, 2], 2.0), "fan_in_fan_out": (True, 2.0),
    "target_parameters": (["q_proj.weight"], 2.0), "ensure_weight_tying": (True, 2.0),
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "megatron_config": {"x": 1},
    "velora_config": {"num_groups": 2}, "alora_invocation_tokens": [1], "use_qalora": True,
    "monteclora_config": {"x": 1}, "layer_replication": [[0, 1]], "kasa_config": {"x": 1},
    "use_bdlora": {"nblocks": 2}, "arrow_config": {"top_k": 2},
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


OTHER_TYPES = [kind.value for kind in peft.PeftType if kind is not peft.PeftType.LORA]


@pytest.mark.parametrize("kind", [*OTHER_TYPES, None, "", "lora", "\x1b[31m", ["LORA"], 1], ids=ascii)
def test_other_kinds_of_adapter_are_refused_by_name(base: Path, kind: object) -> None:
    message = refusal(base, adapter(base, peft_type=kind), UnsupportedError)
    assert "peft_type" in message
    assert ascii(str(kind))[1:-1] in message


@pytest.mark.parametrize("init", [None, True, False, "gaussian", "eva", "orthogonal"], ids=str)
def test_initialisers_that_leave_the_base_alone(base: Path, init: object) -> None:
    assert edits(base, adapter(base, init_lora_weights=init))


@pytest.mark.parametrize(
    "init",
    ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "mica", "new", "", "True", [], {}, ["gaussian"]],
    ids=str,
)
def test_initialisers_that_change_the_base_are_refused(base: Path, init: object) -> None:
    message = refusal(base, adapter(base, init_lora_weights=init), UnsupportedError)
    assert f"init_lora_weights = {init}" in message
    assert "path_initial_model_for_weight_conversion" in message


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


# Patterns.


@pytest.mark.parametrize(
    "pattern", ["(", "[", "*", "a{2,1}", "(?P<x>a)(?P<x>b)", "\\", "(?\x1b", "(?i)q_proj", "\\2"], ids=ascii
)
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_peft_could_not_match_are_refused(base: Path, field: str, pattern: str) -> None:
    assert field in refusal(base, adapter(base, **{field: {pattern: 4}}))


PATTERNS = st.sampled_from(
    [
        "q_proj", "k_proj", "_proj", "proj", ".*", ".*proj", ".", "", "^model", "model", "layers.0.q_proj",
        "layers\\.0\\..*", "layers\\.\\d+\\.q_proj", "(q|k)_proj", "[qk]_proj", "q_proj|k_proj", "^q_proj$",
        "q_proj\\b", "(?i:Q_PROJ)", "(?i)q_proj", "(?!q)._proj", "(?<=0\\.)q_proj", "x+y", "x\\+y", "q(1)",
        "q\\(1\\)", "a)|(q_proj", "(", "(q)_proj\\2", "\\1", "\u00e9",
    ]
)  # fmt: skip
PARTS = st.sampled_from(
    ["model", "layers", "0", "1", "q_proj", "k_proj", "mlp", "x+y", "xxy", "q(1)", "q1", "\u00e9", "Q_PROJ"]
)


def compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
        re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        return False
    return True


@settings(deadline=None, max_examples=600)
@given(
    patterns=st.dictionaries(PATTERNS, st.integers(1, 99), max_size=3),
    module=st.lists(PARTS, min_size=1, max_size=4).map(".".join),
)
def test_patterns_are_matched_as_peft_matches_them(patterns: dict[str, int], module: str) -> None:
    fields = {"peft_type": "LORA", "r": 7, "lora_alpha": 5.0, "rank_pattern": patterns, "alpha_pattern": patterns}
    if not all(map(compiles, patterns)):
        with pytest.raises(InputError, match="rank_pattern"):
            parse_config(Path("adapter_config.json"), fields)
        return
    key = get_pattern_key(patterns.keys(), module)
    config = parse_config(Path("adapter_config.json"), fields)
    assert config.rank_of(module) == patterns.get(key, 7)
    assert config.scale_of(module) == patterns.get(key, 5.0) / patterns.get(key, 7)


def test_name_with_signs_of_a_pattern_still_finds_its_own_entry(base: Path) -> None:
    """PEFT looks a module up by its name where no pattern matches: `x+y` does not match itself."""
    folder = adapter(base, lora_factors("x+y", (8, 6)), alpha_pattern={"x+y": 4})
    assert edits(base, folder)["x+y.weight"][0].scale == 1.0


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|a)*b"])
def test_pattern_that_would_take_for_ever_is_refused(base: Path, pattern: str) -> None:
    module = "a" * 60
    folder = adapter(base, lora_factors(module, (8, 6)), alpha_pattern={pattern: 4})
    script = "import sys; from adaptertool.tasks.merge import prepare_merge; prepare_merge(sys.argv[1], [sys.argv[2]])"
    done = subprocess.run(
        [sys.executable, "-c", script, base, folder],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (5, 5)),
    )
    assert "InputError" in done.stderr or "UnsupportedError" in done.stderr
    assert "alpha_pattern" in done.stderr


# Keys.


@pytest.mark.parametrize(
    "key",
    [
        f"{Q}.base_layer.scale", "model.embed_tokens.token_adapter.other",
        f"{Q}.lora_A.bias", f"{Q}.lora_C.weight", f"{Q}.lora_E", f"{Q}.lora_velora_embed",
        f"{Q}.lora_monteclora_sampler.x", f"{Q}.lora_A.default.weight", f"{Q}.lora_A", f"{Q}.lora_A.weight.absmax",
        f"{Q}.base_layer.base_layer.bias", "lora_A.weight", f"{Q}.lora_\x1b[31m",
    ],
    ids=ascii,
)  # fmt: skip
def test_keys_with_a_meaning_that_is_not_handled_are_refused_by_name(base: Path, key: str) -> None:
    tensors = {**lora_factors(Q, (8, 6)), key: torch.ones(8)}
    message = refusal(base, adapter(base, tensors), UnsupportedError)
    assert ascii(PREFIX + key)[1:-1] in message
    assert "adapter_model.safetensors" in message


@pytest.mark.parametrize(
    "key", [f"{Q}.lora_A.weight", f"model.{Q}.lora_A.weight", "base_model.layers.0.q_proj.lora_A", ""]
)
def test_some_keys_without_the_prefix_of_peft_are_refused(base: Path, key: str) -> None:
    """Where all are without it they are read: test_peft_keys.py."""
    folder = adapter(base)
    save_file({key: torch.ones(4, 6), f"{PREFIX}x.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    assert f"the key {key} does not begin with {PREFIX}" in refusal(base, folder, UnsupportedError)


@pytest.mark.parametrize("missing", ["lora_A", "lora_B"])
def test_factor_without_its_partner(base: Path, missing: str) -> None:
    tensors = {key: tensor for key, tensor in lora_factors(Q, (8, 6)).items() if missing not in key}
    assert f"module {Q} has no {missing}" in refusal(base, adapter(base, tensors))


def test_two_tensors_for_one_bias(base: Path) -> None:
    tensors = {f"{Q}.bias": torch.ones(8), f"{Q}.base_layer.bias": torch.ones(8)}
    assert f"two tensors for {Q}.bias" in refusal(base, adapter(base, tensors))


def test_adapter_without_tensors(base: Path) -> None:
    assert "holds no tensors" in refusal(base, adapter(base, {}))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64, torch.int64]
)
@pytest.mark.parametrize("key", [f"{Q}.lora_A.weight", f"{Q}.bias"])
def test_factors_that_are_no_floats(base: Path, key: str, dtype: torch.dtype) -> None:
    tensors = {**lora_factors(Q, (8, 6)), f"{Q}.bias": torch.zeros(8)}
    tensors[key] = torch.zeros(tensors[key].shape).to(dtype)
    assert PREFIX + key in refusal(base, adapter(base, tensors), UnsupportedError)


# Modules that the base has not.


@pytest.mark.parametrize(
    ("module", "near"),
    [
        ("model.layers.0.self_attn.q_porj", f"{Q}.weight"),
        ("model.language_model.layers.0.self_attn.q_proj", f"{Q}.weight"),
        ("model.layers.1.self_attn.q_proj", f"{Q}.weight"),
        ("\x1b[31m.self_attn.q_proj", ""),
        ("x", ""),
    ],
    ids=ascii,
)
def test_unmatched_module_is_listed_with_the_nearest_names(base: Path, module: str, near: str) -> None:
    tensors = {**lora_factors(Q, (8, 6)), **lora_factors(module, (8, 6))}
    message = refusal(base, adapter(base, tensors), MismatchError)
    assert "1 of 2 modules" in message
    (line,) = (line for line in message.splitlines() if line.startswith(f"  {ascii(module)[1:-1]}.weight"))
    assert near in line


def test_unmatched_saved_tensor(base: Path) -> None:
    message = refusal(base, adapter(base, {"model.layers.0.nrom.weight": torch.ones(6)}), MismatchError)
    assert "model.layers.0.nrom.weight" in message
    assert "model.layers.0.norm.weight" in message


def test_many_unmatched_modules_are_counted(base: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for number in range(1, 21):
        tensors |= lora_factors(f"model.layers.{number}.self_attn.q_proj", (8, 6))
    message = refusal(base, adapter(base, tensors), MismatchError)
    assert "20 of 20 modules" in message
    assert "and 12 more" in message


# Shapes and ranks.


@pytest.mark.parametrize(
    ("key", "shape", "wanted"),
    [
        (f"{Q}.lora_A.weight", (4, 7), "4×6"),
        (f"{Q}.lora_A.weight", (4,), "4×6"),
        (f"{Q}.lora_A.weight", (4, 6, 1), "4×6"),
        (f"{Q}.lora_B.weight", (9, 4), "8×4"),
        (f"{Q}.lora_B.weight", (8, 5), "8×4"),
        (f"{Q}.lora_B.weight", (4, 8), "8×4"),
        (f"{Q}.lora_B.weight", (), "8×4"),
        (f"{Q}.base_layer.weight", (6, 8), "8×6"),
        (f"{Q}.bias", (9,), "8"),
        (f"{Q}.bias", (8, 1), "8"),
        ("lm_head.weight", (11, 6), "10×6"),
    ],
)
def test_wrong_shapes_name_both_sides(base: Path, key: str, shape: tuple[int, ...], wanted: str) -> None:
    tensors = {**lora_factors(Q, (8, 6)), key: torch.ones(shape)}
    message = refusal(base, adapter(base, tensors), MismatchError)
    target = re.sub(r"(lora_A|lora_B|base_layer)\.", "", key)
    assert f"{target} is F32 {'×'.join(map(str, BASE[target].shape))}, so" in message
    assert f"{PREFIX + key} must be {wanted}, but it is F32 {'×'.join(map(str, shape)) or 'scalar'}" in message


def test_lora_on_what_is_no_matrix_is_refused(base: Path) -> None:
    tensors = lora_factors("model.layers.0.norm", (6, 6))
    assert "model.layers.0.norm.weight" in refusal(base, adapter(base, tensors), UnsupportedError)


@pytest.mark.parametrize(
    ("config", "rank"),
    [({"r": 5}, 5), ({"rank_pattern": {"q_proj": 2}}, 2), ({"r": 9, "rank_pattern": {"k_proj": 4}}, 9)],
    ids=str,
)
def test_rank_that_is_not_that_of_the_config(base: Path, config: dict[str, Any], rank: int) -> None:
    message = refusal(base, adapter(base, **config), MismatchError)
    assert f"{PREFIX}{Q}.lora_A.weight is F32 4×6" in message
    assert f"rank {rank} (r and rank_pattern)" in message


# Bases whose weights are not what they seem.


def base_of(folder: Path, config: Mapping[str, Any] | None, tensors: Tensors | None = None) -> Path:
    base = write_checkpoint(folder / "base", tensors or BASE, config=config or {})
    if config is None:
        (base / "config.json").unlink()
    return base


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


C_PROJ = lora_factors("block.c_proj", (6, 6))


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


def test_saved_tensor_of_a_transposing_family_is_taken_as_it_is(tmp_path: Path) -> None:
    base = base_of(tmp_path, {"model_type": "gpt2", "tie_word_embeddings": False})
    assert edits(base, adapter(base, {"block.c_proj.weight": torch.ones(6, 6)})).keys() == {"block.c_proj.weight"}


# What was given as an adapter.


def test_adapter_path_that_is_not_there(base: Path) -> None:
    assert "does not exist" in refusal(base, base.parent / "\x1b[31m")


def test_adapter_path_that_is_too_long(base: Path) -> None:
    assert "xxx" in refusal(base, base.parent / ("x" * 300))


def test_file_given_as_adapter(base: Path) -> None:
    assert "is not a directory" in refusal(base, adapter(base) / "adapter_model.safetensors")


def test_checkpoint_given_as_adapter(base: Path) -> None:
    assert "adaptertool wise" in refusal(base, base)


def test_adapter_without_weights(base: Path) -> None:
    (adapter(base) / "adapter_model.safetensors").unlink()
    message = refusal(base, base.parent / "adapter")
    assert "has no adapter_model.safetensors" in message
    assert "pickle" not in message


def test_adapter_that_is_a_pickle(base: Path) -> None:
    folder = adapter(base)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    message = refusal(base, folder)
    assert "adapter_model.bin, a pickle" in message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_fifo_in_an_adapter(base: Path, name: str) -> None:
    folder = adapter(base)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name} is not a regular file" in refusal(base, folder)


def test_broken_weights_of_an_adapter_are_named(base: Path) -> None:
    path = adapter(base) / "adapter_model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    assert "adapter_model.safetensors is cut short" in refusal(base, path.parent)


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


@pytest.mark.parametrize("pattern", ["(a*)*b", "(?:a|b)+", ".*.*.*.*.*b", "(a){9}"])
def test_patterns_that_may_take_for_ever(base: Path, pattern: str) -> None:
    slow = adapter(base, C_PROJ, rank_pattern={pattern: 4})
    assert "may take for ever" in refusal(base, slow, UnsupportedError)


@pytest.mark.parametrize(
    ("said", "noted"),
    [("org/Base-7B", False), ("elsewhere/base-7b", False), ("/home/me/Base-7B/", False), ("org/Known", False),
     ("org/Hub", False), ("", False), (None, False), (7, False), ("org/Base-7B-Instruct", True), ("org/base", True)],
)  # fmt: skip
def test_an_adapter_for_another_base_is_noted(tmp_path: Path, said: object, noted: bool) -> None:
    """By the name of the folder, of the hub's cache, or in the config; shapes alone do not tell a fine-tune."""
    folder = tmp_path / "models--org--Hub" / "snapshots" / "Base-7B"
    config = {"model_type": "llama", "tie_word_embeddings": False, "_name_or_path": "org/Known"}
    base = write_checkpoint(folder, {f"{Q}.weight": torch.randn(8, 6)}, config=config)
    path = write_adapter(tmp_path / "a", lora_factors(Q, (8, 6)), base_model_name_or_path=said)
    notes = prepare_merge(base, [path]).notes
    assert len(notes) == noted
    assert all(f"says it was trained on {said}; is {base} that?" in note for note in notes)


# Shapes that no factor has, wherever one can stand.

EXPERTS = "mlp.experts"
PLACES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], dict[str, Any]]] = {
    # config, base, factors, config of the adapter
    "plain": ({}, {"l.weight": (8, 6)}, {"l.lora_A.weight": (4, 6), "l.lora_B.weight": (8, 4)}, {}),
    "dora": (
        {},
        {"l.weight": (8, 6)},
        {"l.lora_A.weight": (4, 6), "l.lora_B.weight": (8, 4), "l.lora_magnitude_vector": (8,)},
        {"use_dora": True},
    ),
    "bias": (
        {},
        {"l.weight": (8, 6), "l.bias": (8,)},
        {"l.lora_A.weight": (4, 6), "l.lora_B.weight": (8, 4), "l.lora_B.bias": (8,)},
        {"lora_bias": True},
    ),
    "convolution": ({}, {"l.weight": (8, 6, 3)}, {"l.lora_A.weight": (4, 6, 3), "l.lora_B.weight": (8, 4, 1)}, {}),
    "saved": ({}, {"l.weight": (8, 6)}, {"l.weight": (8, 6)}, {}),
    "embedding": ({}, {"l.weight": (8, 6)}, {"l.lora_embedding_A": (4, 8), "l.lora_embedding_B": (6, 4)}, {}),
    "rows": (
        {},
        {"l.weight": (8, 6)},
        {"l.token_adapter.trainable_tokens_delta": (2, 6)},
        {"trainable_token_indices": [1, 3]},
    ),
    "attention": (
        {},
        {"l.in_proj_weight": (18, 6), "l.out_proj.weight": (6, 6)},
        {
            "l.lora_A.weight": (4, 6),
            "l.lora_B.weight": (18, 4),
            "l.base_layer.out_proj.lora_A.weight": (4, 6),
            "l.base_layer.out_proj.lora_B.weight": (6, 4),
        },
        {},
    ),
    "joined": (
        {},
        {"gate_proj.weight": (8, 6), "up_proj.weight": (8, 6)},
        {"gate_up_proj.lora_A.weight": (4, 6), "gate_up_proj.lora_B.weight": (16, 4)},
        {},
    ),
    "cut": (
        {"model_type": "phi3", "num_key_value_heads": 2, "head_dim": 2},
        {"qkv_proj.weight": (16, 6)},
        {"k_proj.lora_A.weight": (4, 6), "k_proj.lora_B.weight": (4, 4), "v_proj.weight": (4, 6)},
        {},
    ),
    "fused": (
        {"architectures": ["Qwen3MoeForCausalLM"]},
        {f"{EXPERTS}.down_proj": (3, 8, 6)},
        {f"{EXPERTS}.lora_A.weight": (12, 6), f"{EXPERTS}.lora_B.weight": (8, 12)},
        {"target_parameters": [f"{EXPERTS}.down_proj"]},
    ),
    "one of the fused": (
        {"architectures": ["Qwen3MoeForCausalLM"]},
        {f"{EXPERTS}.down_proj": (3, 8, 6)},
        {f"{EXPERTS}.1.down_proj.lora_A.weight": (4, 6), f"{EXPERTS}.1.down_proj.lora_B.weight": (8, 4)},
        {},
    ),
    "apart": (
        {},
        {f"{EXPERTS}.{e}.down_proj.weight": (8, 6) for e in range(3)},
        {f"{EXPERTS}.lora_A.weight": (12, 6), f"{EXPERTS}.lora_B.weight": (8, 12)},
        {"target_parameters": [f"{EXPERTS}.down_proj"]},
    ),
}


@pytest.mark.parametrize("shape", [(), (0,), (3,), (4,), (2, 2, 2), (0, 0), (4, 0), (0, 6), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_factors_of_any_shape_end_in_an_error_of_ours(tmp_path: Path, place: str, shape: tuple[int, ...]) -> None:
    config, stored, factors, fields = PLACES[place]
    config = {"model_type": "llama", "tie_word_embeddings": False} | config
    base = write_checkpoint(tmp_path / "base", {name: torch.ones(size) for name, size in stored.items()}, config=config)
    good = {name: torch.ones(size) for name, size in factors.items()}
    prepare_merge(base, [write_adapter(tmp_path / "good", good, **fields)])
    for number, name in enumerate(factors):
        bad = write_adapter(tmp_path / f"bad{number}", good | {name: torch.ones(shape)}, **fields)
        assert refusal(base, bad)
    saved = {f"{name.removesuffix('.weight')}.weight": torch.ones(shape) for name in stored}
    with contextlib.suppress(InputError):
        prepare_merge(base, [write_adapter(tmp_path / "all", saved)])


# What people give in the place of an adapter, and where it is.


def test_adapters_one_level_down_are_listed(base: Path) -> None:
    root = base.parent / "training"
    for number in (1000, 500):
        write_adapter(root / f"checkpoint-{number}", lora_factors(Q, (8, 6)))
    assert f"give one of {root}/checkpoint-500, {root}/checkpoint-1000" in refusal(base, root)
    write_adapter(root / "x" / "style", lora_factors(Q, (8, 6)))
    assert f"there is one in {root}/x/style: give that path" in refusal(base, root / "x")


def test_adapter_in_the_cache_of_the_hub(base: Path) -> None:
    root = base.parent / "models--someone--lora"
    write_adapter(root / "snapshots" / "0123abcd", lora_factors(Q, (8, 6)))
    assert f"there is one in {root}/snapshots/0123abcd: give that path" in refusal(base, root)


@pytest.mark.parametrize("given", ["someone/my-lora", "https://huggingface.co/someone/my-lora"])
def test_adapter_by_its_name_on_the_hub(base: Path, given: str) -> None:
    assert "hf download someone/my-lora --local-dir" in refusal(base, Path(given))


def test_the_way_from_a_pickle_to_safetensors(base: Path) -> None:
    """The command that the message gives is run, as a shell would."""
    folder = adapter(base).rename(base.parent / "an adapter's")
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({name: tensor.T.contiguous().T for name, tensor in tensors.items()}, folder / "adapter_model.bin")
    command = refusal(base, folder).splitlines()[-1]
    done = subprocess.run(["/bin/sh", "-c", command.replace("python ", f"{sys.executable} ", 1)], check=False)
    assert done.returncode == 0
    assert edits(base, folder).keys() == {f"{Q}.weight"}


@pytest.mark.parametrize("key", [f"{Q}.lora_A.weight", "model.norm.weight"])
def test_tensors_that_were_saved_without_gathering(base: Path, key: str) -> None:
    tensors = dict(lora_factors(Q, (8, 6))) | {key: torch.zeros(0)}
    assert "stage3_gather_16bit_weights_on_model_save" in refusal(base, adapter(base, tensors))


def test_base_that_was_saved_without_gathering(tmp_path: Path) -> None:
    base = base_of(tmp_path, UNTIED, BASE | {f"{Q}.weight": torch.zeros(0)})
    assert "ZeRO-3 saved without gathering" in refusal(base, adapter(base))


@pytest.mark.parametrize("name", [f"{Q}.base_layer.weight", f"{Q}.lora_A.default.weight", "x.lora_magnitude_vector"])
def test_base_with_an_adapter_that_is_not_merged(tmp_path: Path, name: str) -> None:
    base = base_of(tmp_path, UNTIED, BASE | {name: torch.zeros(8, 6)})
    message = refusal(base, adapter(base), UnsupportedError)
    assert name in message and "merge_and_unload" in message
    with pytest.raises(UnsupportedError, match="merge_and_unload"):
        adaptertool.prepare_wise(base, base, 0.5)


def test_one_shard_given_as_the_base(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", BASE, shards=2)
    shards = [path for path in base.glob("*.safetensors") if f"{Q}.weight" not in load_file(path)]
    message = refusal(shards[0], adapter(base))
    assert f"is one shard of many; give the directory: {base}" in message and "another model" not in message
