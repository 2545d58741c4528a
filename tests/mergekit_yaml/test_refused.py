"""Configurations of mergekit that are wrong, or that are not built: each is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import gguf_files
import numpy as np
import pytest
import quantised_bases
from safetensors.torch import load_file, save_file
from small_llamas import CONFIG, llama

import adaptertool
from adaptertool.errors import AdapterToolError, UnsupportedError

GOOD = """models:
  - model: one
    parameters: {weight: 0.5}
  - model: two
merge_method: linear
dtype: bfloat16
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("weight: 0.5", "wieght: 0.5", 3, "weight"),
        ("weight: 0.5", "weight: 1e400", 3, "a number that a float has"),
        ("weight: 0.5", "weight: 1e999999999", 3, "a number that a float has"),
        ("weight: 0.5", "weight: 1e-999999999", 3, "a number that a float has"),
        ("weight: 0.5", "weight: heavy", 3, "heavy"),
        ("weight: 0.5", "weight: .nan", 3, "nan"),
        ("merge_method: linear", "merge_method: liner", 5, "linear"),
        ("merge_method: linear", "merge_method: ram", 5, "ram"),
        ("dtype: bfloat16", "dtype: int7", 6, "int7"),
        ("dtype: bfloat16", "dtyp: bfloat16", 6, "dtype"),
        ("dtype: bfloat16", "dtype: bfloat16\ndtype: float16", 7, "dtype"),
        ("  - model: two\n", "  - modle: two\n", 4, "model"),
        ("dtype: bfloat16", "slices: []", 1, "just one of models, slices and modules"),
    ],
)
def test_the_line_is_named(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    path = tmp_path / "config.yml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(AdapterToolError) as caught:
        adaptertool.mergekit(path, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}:{line}:"), caught.value
    assert said in str(caught.value) and not (tmp_path / "out").exists()


PLAIN = "models: [{model: %s, parameters: {weight: 1}}]\nmerge_method: linear\n"


def test_a_quantised_model_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the refusal says works: decoded by `wise`, it is a model."""
    monkeypatch.chdir(tmp_path)
    made = quantised_bases.fp8_block()
    Path("base").mkdir()
    save_file(dict(made.tensors), "base/model.safetensors")
    config = {**CONFIG, "num_hidden_layers": 1, "quantization_config": made.config}
    Path("base/config.json").write_text(json.dumps(config))
    Path("c.yml").write_text(PLAIN % "base")
    with pytest.raises(UnsupportedError, match=r"quantised .*wise base base --alpha 0 --dtype bf16 -o DENSE"):
        adaptertool.mergekit("c.yml", "out")
    adaptertool.wise("base", "base", "dense", 0, dtype="bf16")
    Path("c.yml").write_text(PLAIN % "dense")
    adaptertool.mergekit("c.yml", "out")
    ours, dense = (load_file(f"{name}/model.safetensors")[made.name] for name in ("out", "dense"))
    assert ours.equal(dense)


def test_gguf_is_refused(tmp_path: Path) -> None:
    path = gguf_files.write_model(
        tmp_path / "m.gguf", {"model.layers.0.self_attn.q_proj.weight": np.ones((8, 8), np.float32)}
    )
    (tmp_path / "c.yml").write_text(PLAIN % path)
    with pytest.raises(UnsupportedError, match=r"is GGUF; .* name what it was converted from"):
        adaptertool.prepare_mergekit(tmp_path / "c.yml")


MODULES = "modules:\n  text: {models: [{model: a}]}\n  vision: {models: [{model: a}]}\nmerge_method: linear\n"


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (MODULES, UnsupportedError, r"c.yml:2:3: several modules, .* merge the models whole"),
        (GOOD + "---\n" + GOOD, UnsupportedError, r"c.yml:8:1: a second merge: write each into a file of its own"),
    ],
)
def test_what_is_not_built_has_its_reason(
    text: str, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yml").write_text(text)
    with pytest.raises(error, match=said):
        adaptertool.prepare_mergekit("c.yml")


SLICES = """slices:
  - {base_model: a, sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]}
  - {base_model: b, sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]}
merge_method: task_arithmetic
base_model: a
parameters: {weight: 1}
"""
WITH_ADAPTER = "models: [{model: a, parameters: {weight: 1}}]\nmerge_method: task_arithmetic\nbase_model: %s+%s\n"


def test_other_bases_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    llama(tmp_path / "b", 2, like=llama(tmp_path / "a", 1))
    Path("c.yml").write_text(SLICES)
    with pytest.raises(UnsupportedError, match=r"c\.yml:3:5: the base is b, .* a base for each slice is not supported"):
        adaptertool.prepare_mergekit("c.yml")
    fixtures = Path(__file__).parents[2] / "fixtures"
    text = WITH_ADAPTER.replace("model: a", f"model: {fixtures}/tuned") % (fixtures / "base", fixtures / "lora")
    Path("c.yml").write_text(text)
    with pytest.raises(UnsupportedError, match=r"a model with an adapter: merge that first, and name what it makes"):
        adaptertool.prepare_mergekit("c.yml")


FILTERED = """models:
  - model: a
    parameters: {weight: [{filter: mpl, value: 0.5}, {filter: mlp, value: 0.3}, {value: 1}]}
  - model: b
    parameters: {weight: 1}
merge_method: linear
parameters: {normalize: [{filter: layers.9., value: false}, {filter: '*', value: true}]}
"""


def test_a_filter_that_fits_no_tensor_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mergekit passes over it in silence. The one that fits, and the one for all, are not told."""
    llama(tmp_path / "b", 2, like=llama(tmp_path / "a", 1))
    monkeypatch.chdir(tmp_path)
    Path("c.yml").write_text(FILTERED)
    notes = adaptertool.prepare_mergekit("c.yml").notes
    told = [note for note in notes if "filter" in note]
    assert [note.split(": ")[0].rpartition(":")[0] for note in told] == ["c.yml:3", "c.yml:7"]
    assert told[0].endswith("the filter 'mpl' of weight fits no tensor: it changes nothing, as in mergekit")
    assert "'layers.9.' of normalize" in told[1]
    report = adaptertool.mergekit("c.yml", "out")
    assert set(told) <= set(report.notes)
