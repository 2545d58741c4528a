"""Configurations of the forms that people write, and those of mergekit's own examples: the tensors are those that
mergekit 0.1.5 makes of the same small models. It is asked where it is installed, else what it made is in
test_as_mergekit.json, three sums for each tensor:

pip install --no-deps mergekit==0.1.5 immutables; HF_HUB_OFFLINE=1 python tests/mergekit_yaml/test_as_mergekit.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_llamas import llama, projections, write_models

import adaptertool

CONFIGS = Path(__file__).with_name("configs.yml")
RECORD = Path(__file__).with_suffix(".json")
NAMES = [text.splitlines()[0] for text in CONFIGS.read_text().split("\n--- # ")[1:]]
TEXTS = {text.splitlines()[0]: text.partition("\n")[2] for text in CONFIGS.read_text().split("\n--- # ")[1:]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_as_mergekit(name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    (tmp_path / "config.yml").write_text(TEXTS[name])
    adaptertool.mergekit(tmp_path / "config.yml", tmp_path / "out", threads=1)
    wanted = json.loads(RECORD.read_text())[name]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in found.values()} == {wanted["dtype"]}
    ours, theirs = projections(found), wanted["tensors"]
    assert list(ours) == list(theirs)
    loose = 1e-2 if wanted["dtype"] == "float16" else 1e-5  # theirs is computed in that dtype, with its roundings
    for tensor, sums in ours.items():
        np.testing.assert_allclose(sums, theirs[tensor], rtol=loose, atol=loose, err_msg=tensor)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == wanted["layers"]


def test_a_dry_run_tells_the_weights_of_their_models(tmp_path: Path) -> None:
    """The first model stands in for the base: it has no edit, and the others have their own weights."""
    sources = ""
    for seed, (name, weight) in enumerate({"a": 5, "b": 3, "c": 2}.items()):
        llama(tmp_path / name, seed, 1)
        sources += f"  - {{model: {tmp_path / name}, parameters: {{weight: {weight}}}}}\n"
    (tmp_path / "r.yml").write_text(f"models:\n{sources}merge_method: linear\n")
    plan = adaptertool.prepare_mergekit(tmp_path / "r.yml")
    told = {
        (Path(plan.sources[edit.adapter]).name, edit.weight)
        for tensor in adaptertool.preview(plan, tmp_path / "out").tensors
        for edit in tensor.edits
    }
    assert told == {("b", 3.0), ("c", 2.0)}


def record() -> None:
    """What mergekit makes."""
    from mergekit.scripts.run_yaml import main  # noqa: PLC0415

    found = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        write_models(Path(folder))
        patch.chdir(folder)
        for name, text in TEXTS.items():
            Path("config.yml").write_text(text)
            main(
                ["config.yml", f"out/{name}", "--quiet", "--no-copy-tokenizer", "--no-write-model-card"],
                standalone_mode=False,
            )
            tensors = {}
            for file in Path("out", name).glob("*.safetensors"):
                tensors |= load_file(file)
            layers = json.loads(Path("out", name, "config.json").read_text())["num_hidden_layers"]
            (dtype,) = {str(tensor.dtype) for tensor in tensors.values()}
            found[name] = {"dtype": dtype, "layers": layers, "tensors": projections(tensors)}
    RECORD.write_text(json.dumps(found, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    record()
