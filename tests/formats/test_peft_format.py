"""PEFT's files, and where their modules lie in the base: each thing not understood to the letter is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, lora_factors, write_adapter, write_checkpoint
from peft_files import BASE, K, Q, adapter, edits, refusal
from safetensors.torch import save_file

from adaptertool.errors import MismatchError, UnsupportedError
from adaptertool.tasks.merge import prepare_merge

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
        (f"{Q}.lora_A.weight", (4, 6, 2), "4×6"),
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
    notes = [note for note in prepare_merge(base, [path]).notes if "trained on" in note]
    assert len(notes) == noted
    assert all(f"says it was trained on {said}; is {base} that?" in note for note in notes)
