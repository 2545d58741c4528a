"""Layers chosen, stacked and numbered anew: copied bytes, and a config.json that follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import lora_factors, write_adapter
from safetensors.numpy import load_file
from small_llamas import llama

import adaptertool
from adaptertool.errors import InputError, UnsupportedError, UsageError
from adaptertool.mergekit_yaml.depth import Origin, with_layers


def test_layers_are_copied_by_their_bytes(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", 1, 4)
    report = adaptertool.layers(tmp_path / "base", "0-2, 1-3", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    old = [0, 1, 2, 1, 2, 3]
    wanted = {name: tensor for name, tensor in base.items() if ".layers." not in name}
    for new, layer in enumerate(old):
        front = f"model.layers.{layer}."
        own = {name.removeprefix(front): tensor for name, tensor in base.items() if name.startswith(front)}
        wanted |= {f"model.layers.{new}.{rest}": tensor for rest, tensor in own.items()}
    assert found.keys() == wanted.keys()
    assert all(found[name].tobytes() == tensor.tobytes() for name, tensor in wanted.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 6
    assert report.tensors_copied == len(wanted)
    assert [note.split(" of ")[0] for note in report.notes] == ["layers 0-2 are 0-2", "layers 3-5 are 1-3"]
    assert adaptertool.check_files(tmp_path / "out").ok


def test_files_are_divided_and_have_an_index(tmp_path: Path) -> None:
    llama(tmp_path / "base", 1, 4)
    adaptertool.layers(tmp_path / "base", "3,0", tmp_path / "out", max_shard_size=2500)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == names
    assert len(names) > 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 2
    again = adaptertool.layers(tmp_path / "out", "1,0", tmp_path / "back")
    assert again.tensors_copied == len(index["weight_map"])


@pytest.mark.parametrize("layers", ["", "3-1", "a", "1-", "-1", "0,,1", "0-999999"])
def test_layers_that_are_none(layers: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="layers"):
        adaptertool.prepare_layers(tmp_path, layers)


def test_layers_that_are_not_there(tmp_path: Path) -> None:
    llama(tmp_path / "base", 1, 2)
    with pytest.raises(InputError, match="has layers 0 to 1"):
        adaptertool.prepare_layers(tmp_path / "base", "0-2")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match="tensors of 2 layers"):
        adaptertool.prepare_layers(tmp_path / "base", "0")


CONFIG = {
    "num_hidden_layers": 4,
    "layer_types": ["s", "s", "f", "s"],
    "mlp_only_layers": [0, 3],
    "eos_token_id": [1, 2, 3, 4],
    "vocab_size": 4,
    "full_attention_interval": 3,
}


def chosen(config: dict[str, Any], *layers: int) -> dict[str, Any]:
    return with_layers(config, 4, [Origin(config, "base", layer) for layer in layers])


def test_what_a_config_says_of_single_layers_follows() -> None:
    new = chosen(CONFIG, 0, 2, 2, 3, 3)
    assert new == {
        **CONFIG,
        "num_hidden_layers": 5,
        "layer_types": ["s", "f", "f", "s", "s"],
        "mlp_only_layers": [0, 3, 4],
    }


def test_layers_do_not_become_of_another_kind() -> None:
    dense = {"text_config": {"num_hidden_layers": 4, "first_k_dense_replace": 1}}
    assert chosen(dense, 0, 2, 3)["text_config"]["num_hidden_layers"] == 3
    with pytest.raises(UnsupportedError, match="layer 0 of base would become another kind of layer as 1"):
        chosen(dense, 0, 0, 1)
    with pytest.raises(UnsupportedError, match="nowhere"):
        chosen({"layers": 4}, 0)
    other = {"num_hidden_layers": 4, "layer_types": ["s"] * 4}
    with pytest.raises(UnsupportedError, match="nothing of its layer 1 by layer_types"):
        with_layers(other, 4, [Origin({"num_hidden_layers": 4}, "that", 1)])


MODELS = "models: [{model: base, parameters: {weight: 1}}, {model: a, parameters: {weight: 1}}]\n"
WRONG = [
    ("merge_method: linear", "c.yml:1:1: just one of models, slices and modules"),
    (MODELS + "merge_method: linaer", "c.yml:2:15: mergekit has no method 'linaer'; nearest: linear"),
    (MODELS + "merge_method: ram", "the method ram is not built"),
    (MODELS + "merge_method: linear\nbase-model: a", "c.yml:3:1: .* has no field 'base-model'; nearest: base_model"),
    (MODELS + "merge_method: ties", "c.yml:2:15: ties needs a base_model"),
    (MODELS + "merge_method: linear\nparameters: {wieght: 1}", "c.yml:3:22: no method .* 'wieght'; nearest: weight"),
    (MODELS + "merge_method: slerp\nbase_model: a", "slerp needs t, and nothing says it"),
    (MODELS + "merge_method: slerp\nbase_model: a\nparameters: {t: yes}", "c.yml:4:17: t is a number, not 'yes'"),
    (MODELS + "merge_method: linear\ndtype: int8", "c.yml:3:8: dtype is bfloat16"),
    (MODELS + "merge_method: linear\nparameters: {normalize: 0.5}", "normalize is true or false"),
    (MODELS + "merge_method: ties\nbase_model: c\nparameters: {gamma: 2}\n", None),
    (MODELS + "merge_method: breadcrumbs\nbase_model: c\nparameters: {gamma: 2}\n", "gamma is a share from 0 to 1"),
    (MODELS + "merge_method: linear\n---\nmerge_method: linear", "c.yml:4:1: a second merge"),
    ("models: [{model: a}, {model: a}]\nmerge_method: linear", "a is among these twice"),
    ("models: [{model: deep}, {model: a}]\nmerge_method: karcher", "deep 6 layers|name the layers with slices"),
    ("models: [{model: a+b+c}]\nmerge_method: karcher", "a model is a path, or path"),
    ("slices: [{sources: [{model: a, layer_range: [0, 9]}]}]\nmerge_method: passthrough", "layers 0 to 3"),
    ("slices: [{sources: [{model: a, layer_range: [2, 2]}]}]\nmerge_method: passthrough", "holds no layer"),
    ("slices: [{sources: [{model: a}]}]\nmerge_method: passthrough", "has a layer_range"),
    ("slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: base, layer_range: [0, 1]}]}]\nmerge_method: linear",
     "as many layers"),
    (MODELS + "merge_method: passthrough", "passthrough takes 1 models, and here are 2"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_what_is_wrong_is_told_with_its_line(
    text: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = llama(tmp_path / "base", 1)
    llama(tmp_path / "a", 2, like=base)
    llama(tmp_path / "c", 3, like=base)
    llama(tmp_path / "deep", 3, 6)
    monkeypatch.chdir(tmp_path)
    Path("c.yml").write_text(text)
    if said is None:  # of another method: passed over, and told
        assert any("has no gamma" in note for note in adaptertool.prepare_mergekit("c.yml").notes)
        return
    with pytest.raises(InputError, match=said):
        adaptertool.prepare_mergekit("c.yml")


def test_an_adapter_on_a_model_is_its_change_on_it(tmp_path: Path) -> None:
    """Beside the plain model, at half its weight: the mean of both, from the merge in float32."""
    fixtures = Path(__file__).parents[2] / "fixtures"
    names = f"{{model: {fixtures}/base, parameters: {{weight: 1}}}}, {{model: {fixtures}/base+{fixtures}/lora, "
    (tmp_path / "c.yml").write_text(
        f"models: [{names}parameters: {{weight: 1}}}}]\nmerge_method: linear\nout_dtype: float32\n"
    )
    adaptertool.mergekit(tmp_path / "c.yml", tmp_path / "out")
    adaptertool.merge(fixtures / "base", [fixtures / "lora"], tmp_path / "half", weights=[0.5], dtype="f32")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = {}
    for path in (tmp_path / "half").glob("*.safetensors"):
        theirs |= load_file(path)
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-6, atol=1e-9, err_msg=name)


def test_an_adapter_on_tied_ends_changes_a_head_that_another_model_stores(tmp_path: Path) -> None:
    """The model ties both, so its head has the change of its embedding; the output stores them apart."""
    tied, apart = llama(tmp_path / "tied", 1, 1, tied=True), llama(tmp_path / "apart", 2, 1)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    factors = lora_factors("lm_head", tied[embedding].shape)
    adapter = write_adapter(tmp_path / "adapter", factors, ensure_weight_tying=True)
    (tmp_path / "c.yml").write_text(
        f"models: [{{model: {tmp_path}/tied+{adapter}}}, {{model: {tmp_path}/apart}}]\n"
        "merge_method: linear\nparameters: {weight: 1}\n"
    )
    report = adaptertool.mergekit(tmp_path / "c.yml", tmp_path / "out")
    adaptertool.merge(tmp_path / "tied", [adapter], tmp_path / "merged")
    ours, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "merged"))
    assert head not in merged and np.abs(merged[embedding] - tied[embedding]).max() > 0.01
    for name in (embedding, head):
        mean = (merged[embedding].astype(float) + apart[name]) / 2
        np.testing.assert_allclose(ours[name], mean, rtol=1e-5, atol=1e-6, err_msg=name)
    assert not any("stay tied" in note for note in report.notes)


@pytest.mark.parametrize(
    ("layers", "more"),
    [
        ([1, 2], {"model_type": "gemma2"}),  # every second by the code, of which config.json says nothing
        ([5, 3], {"model_type": "gemma3_text", "num_hidden_layers": 8}),
        ([0, 3, 1], {"model_type": "exaone4", "sliding_window_pattern": "LLLG"}),
        ([1, 2], {"block_types": ["recurrent", "recurrent", "attention"]}),
        ([0, 1], {"num_kv_shared_layers": 2}),
        ([0, 1], {"hidden_size_per_layer_input": 8}),
        ([0, 1], {"attention_types": [[["global", "local"], 2]]}),
        ([1, 2], {"moe_layer_start_index": 1, "moe_layer_end_index": 3}),
        ([1, 2], {"num_dense_layers": 1}),
    ],
)
def test_layers_that_would_be_of_another_kind_by_code_or_pattern(layers: list[int], more: dict[str, Any]) -> None:
    config = {"num_hidden_layers": 4, **more}
    count = config["num_hidden_layers"]
    every = with_layers(config, count, [Origin(config, "base", layer) for layer in range(count)])
    assert every == config

    with pytest.raises(UnsupportedError, match=r"kind of layer|depend on which others"):
        with_layers(config, count, [Origin(config, "base", layer) for layer in layers])


def test_kinds_that_stay_by_code_or_pattern() -> None:
    gemma = {"num_hidden_layers": 4, "model_type": "gemma2"}
    assert with_layers(gemma, 4, [Origin(gemma, "base", layer) for layer in (2, 3)])["num_hidden_layers"] == 2
    said = {**gemma, "layer_types": ["s", "f", "s", "f"]}
    assert with_layers(said, 4, [Origin(said, "base", layer) for layer in (1, 2)])["layer_types"] == ["f", "s"]
    letters = {"num_hidden_layers": 4, "hybrid_override_pattern": "M-M*"}
    assert with_layers(letters, 4, [Origin(letters, "base", layer) for layer in (3, 1)]) == {
        "num_hidden_layers": 2,
        "hybrid_override_pattern": "*-",
    }
