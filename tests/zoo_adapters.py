"""Adapters that are spoilt, each with words of the message."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from conftest import PREFIX, Tensors, lora_factors
from headers import packed
from safetensors.torch import save, save_file
from zoo import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    GOOD_FACTORS,
    INDEXES,
    A,
    B,
    Q,
    Spoil,
    both,
    replaced,
    without,
    written,
)

# --- adapters: name -> (what spoils a good one, words of the message) ---


def config(**fields: Any) -> Spoil:
    def spoil(root: Path) -> None:
        old = json.loads((root / ADAPTER_CONFIG).read_text())
        (root / ADAPTER_CONFIG).write_text(json.dumps(old | fields))

    return spoil


def config_text(key: str, text: str) -> Spoil:
    """A field as literal text, for what json.dumps does not write."""
    return written(ADAPTER_CONFIG, f'{{"peft_type":"LORA","r":4,"lora_alpha":8,"{key}":{text}}}'.replace(
        {"r": '"r":4,', "lora_alpha": '"lora_alpha":8,'}.get(key, "\0"), ""))  # fmt: skip


def field_missing(key: str) -> Spoil:
    def spoil(root: Path) -> None:
        fields = json.loads((root / ADAPTER_CONFIG).read_text())
        del fields[key]
        (root / ADAPTER_CONFIG).write_text(json.dumps(fields))

    return spoil


def factors(more: Tensors, *, drop: str = "", prefix: str = PREFIX) -> Spoil:
    def spoil(root: Path) -> None:
        tensors = {key: value for key, value in (GOOD_FACTORS | dict(more)).items() if key != drop}
        save_file({prefix + key: value for key, value in tensors.items()}, root / ADAPTER_WEIGHTS)

    return spoil


def module_alone(name: str, **fields: Any) -> Spoil:
    """Factors of a module of another name, and a config for it."""

    def spoil(root: Path) -> None:
        tensors = lora_factors(name, (8, 6))
        save_file({PREFIX + key: value for key, value in tensors.items()}, root / ADAPTER_WEIGHTS)
        config(**fields)(root)

    return spoil


def poisoned(key: str, value: float) -> Tensors:
    tensor = GOOD_FACTORS[key].clone()
    tensor.flatten()[-1] = value
    return {key: tensor}


_WRONG: dict[str, list[object]] = {
    "r": [None, 0, -4, True, 4.0, "4", [4], 2**70],
    "lora_alpha": [None, "8", True, [8], {}, 10**400],
    "use_rslora": [1, "true", [True]], "use_dora": ["yes"], "fan_in_fan_out": ["no"], "lora_bias": [1],
    "rank_pattern": [[["q", 4]], "q", {"q_proj": 0}, {"q_proj": True}, {"q_proj": None}, {"(": 4}, {"[": 4}],
    "alpha_pattern": ["q", {"q_proj": "8"}, {"q_proj": None}, {"*": 4}],
    "bias": ["some", {}], "target_parameters": ["x", [1]], "trainable_token_indices": [[1, 1], [-1], "x"],
    "init_lora_weights": ["pissa", "olora", [1]], "layer_replication": [[[0, 1]]], "brand_new": [True, 1, {"a": 0}],
}  # fmt: skip
_BOMBS = {  # patterns that would take for ever, and the name that they are matched against
    "repeats in a group": ("(a*)*b", "a" * 60), "repeated alternatives": ("(a|a)*b", "a" * 60),
    "alternatives in turn": ("(a|a)" * 40 + "b", "a" * 60), "options in turn": ("a?" * 40 + "a" * 40 + "b", "a" * 60),
    "empty alternatives in turn": ("(|a)" * 40 + "b", "a" * 60), "five wildcards": (".*" * 5 + "b", "a" * 60),
    "four wildcards and a long name": (".*.*.*.*[xy]", "a" * 4096),
    "group with white space": ("(?x:(a*) *b)", "a" * 60), "very long": ("a" * 20_000, "a"),
}  # fmt: skip
_CONFIGS = {
    "empty": "", "a list": "[]", "null": "null", "a string": '"LORA"', "cut": '{"peft_type"', "page": "<html></html>",
    "pointer": INDEXES["git-LFS pointer"], "key twice": '{"peft_type":"LORA","peft_type":"LORA"}',
    "nested deep": '{"a":' * 100_000, "far too many values": '{"a":[' + '{"":0},' * 1_600_000 + "0]}",
    "byte order mark": "\ufeff{}", "empty object": "{}", "trailing comma": '{"peft_type":"LORA",}',
}  # fmt: skip
ADAPTERS: dict[str, tuple[Spoil, str]] = {
    "no config": (without(ADAPTER_CONFIG), f"has no {ADAPTER_CONFIG}"),
    "no weights": (without(ADAPTER_WEIGHTS), f"has no {ADAPTER_WEIGHTS}"),
    "nothing": (without(ADAPTER_CONFIG, ADAPTER_WEIGHTS), "is not an adapter"),
    "a pickle alone": (both(without(ADAPTER_WEIGHTS), written("adapter_model.bin", b"\x80\x02}")), "a pickle"),
    **{f"config: {name}": (written(ADAPTER_CONFIG, text), ADAPTER_CONFIG) for name, text in _CONFIGS.items()},
    "config: pointer says what to do": (written(ADAPTER_CONFIG, _CONFIGS["pointer"]), "git lfs pull"),
    "config: not UTF-8": (written(ADAPTER_CONFIG, b'{"\xff":1}'), ADAPTER_CONFIG),
    "config: far too large": (lambda root: os.truncate(root / ADAPTER_CONFIG, 100_000_001), ADAPTER_CONFIG),
    **{f"{kind} for {name}": (replaced(name, make), f"{name} is not a regular file")
       for kind, make in {"FIFO": os.mkfifo, "directory": Path.mkdir}.items()
       for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)},
    **{f"peft_type {kind!r}": (config(peft_type=kind), "peft_type") for kind in (None, "", "lora", "OSF", ["LORA"])},
    "no r": (field_missing("r"), ": r must be"),
    "no lora_alpha": (field_missing("lora_alpha"), ": lora_alpha must be"),
    **{f"{key} {str(value)[:30]}": (config(**{key: value}), "" if value == 2**70 else f"{ADAPTER_CONFIG}: {key}")
       for key, values in _WRONG.items() for value in values},
    **{f"{key} {text[:9]}": (config_text(key, text), ADAPTER_CONFIG)
       for key in ("r", "lora_alpha") for text in ("NaN", "Infinity", "-Infinity", "1e400", "9" * 5000)},
    **{f"{key}: {name}": (module_alone(module, **{key: {pattern: 4}}), f"{ADAPTER_CONFIG}: {key}")
       for key in ("rank_pattern", "alpha_pattern") for name, (pattern, module) in _BOMBS.items()},
    "rank of another adapter": (config(r=8), A),
    "A without B": (factors({}, drop=B), f"{Q} has no lora_B"),
    "B without A": (factors({}, drop=A), f"{Q} has no lora_A"),
    "no factors": (written(ADAPTER_WEIGHTS, packed({})), "holds no tensors"),
    "A too wide": (factors({A: torch.ones(4, 7)}), A),
    "A a vector": (factors({A: torch.ones(4)}), A),
    "B too high": (factors({B: torch.ones(9, 4)}), B),
    "B of another rank": (factors({B: torch.ones(8, 5)}), B),
    "B a scalar": (factors({B: torch.ones(())}), B),
    "empty factors": (factors({A: torch.ones(0, 6), B: torch.ones(8, 0)}), A),
    **{f"factor of {dtype}": (factors({A: torch.zeros(4, 6, dtype=dtype)}), A)
       for dtype in (torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64)},
    **{f"{value} in {key[-13:]}": (factors(poisoned(key, value)), f"{key} holds")
       for key in (A, B) for value in (float("nan"), float("inf"), float("-inf"))},
    "another model's": (module_alone("model.layers.7.self_attn.q_proj"), "layers.7.self_attn.q_proj"),
    "another model's, name of 4 KB": (module_alone("n" * 4096), "nnn"),
    "module on a vector": (factors(lora_factors("model.norm", (6, 6))), "model.norm.weight"),
    "left over: a factor not known": (factors({f"{Q}.lora_C.weight": torch.ones(1)}), "lora_C"),
    "left over: a tensor not of the base": (factors({"model.extra.weight": torch.ones(1)}), "model.extra.weight"),
    "left over: magnitudes": (factors({f"{Q}.lora_magnitude_vector": torch.ones(8)}), "lora_magnitude_vector"),
    "left over: token rows": (factors({"e.token_adapter.trainable_tokens_delta": torch.ones(1, 6)}), "has no rows"),
    "DoRA without magnitudes": (config(use_dora=True), "lora_magnitude_vector"),
    "embedding and plain factors of one module": (factors({f"{Q}.lora_embedding_A": torch.ones(4, 6)}), Q),
    "two magnitudes": (factors({f"{Q}.lora_magnitude_vector": torch.ones(8),
                                f"{Q}.lora_magnitude_vector.weight": torch.ones(8)}), Q),
    "one bias under two keys": (factors({f"{Q}.bias": torch.ones(8), f"{Q}.base_layer.bias": torch.ones(8)}),
                                f"{Q}.bias"),
    "some keys without the prefix": (written(ADAPTER_WEIGHTS, save(
        {PREFIX + A: torch.ones(4, 6), B: torch.ones(8, 4)})), "does not begin with"),
    "tensors of a model, and no factors": (written(ADAPTER_WEIGHTS, save({"x.weight": torch.ones(2)})), "no factors"),
    "key with a terminal escape": (factors({"\x1b[2J": torch.ones(1)}), "\\x1b[2J"),
    "target_parameters without factors": (config(target_parameters=["experts.w"]), "target_parameters"),
}  # fmt: skip
