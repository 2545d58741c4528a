"""`--max-shard-size`: the same tensors in other files, which the libraries load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, Tensors, load, lora_factors, main_here, same_bits, write_adapter, write_checkpoint
from huggingface_hub import load_state_dict_from_file
from quantised_bases import FORMATS, Q, X
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

import adaptertool as library
from adaptertool.arguments import parse_size
from adaptertool.errors import UnsupportedError, UsageError
from adaptertool.files.checkpoint import INDEX
from adaptertool.planning import sharding

NAMES = [f"model.layers.{number}.mlp.up_proj" for number in range(5)]


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}


def in_order(folder: Path) -> list[str]:
    """The names of tensors, file after file."""
    return [name for file in sizes(folder) for name in load_state_dict_from_file(folder / file)]


def tensors() -> Tensors:
    return {f"{name}.weight": torch.randn(24, 16).bfloat16() for name in NAMES} | {"model.norm.weight": torch.ones(3)}


@pytest.mark.parametrize("shards", [1, 3])
def test_the_same_tensors_in_files_of_that_size(tmp_path: Path, shards: int) -> None:
    base = write_checkpoint(tmp_path / "base", tensors(), shards=shards)
    factors = {key: value for name in NAMES[1:3] for key, value in lora_factors(name, (24, 16)).items()}
    adapter = write_adapter(tmp_path / "adapter", factors)
    library.merge(base, [adapter], tmp_path / "plain")
    report = library.merge(base, [adapter], tmp_path / "out", max_shard_size="1.7KB", verify=True, sha256=True)
    plain, found = load(tmp_path / "plain"), load(tmp_path / "out")
    assert plain.keys() == found.keys() and all(same_bits(found[name], plain[name]) for name in plain)
    written = sizes(tmp_path / "out")
    assert list(written) == [
        f"model-{number + 1:05}-of-{len(written):05}.safetensors" for number in range(len(written))
    ]
    assert len(written) > 3 and max(written.values()) <= 1700
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in plain.values())
    assert index["weight_map"].keys() == plain.keys()
    total = sum(path.stat().st_size for path in (tmp_path / "out").iterdir() if not path.name.startswith(("ad", "SHA")))
    assert report.bytes_written == total
    assert library.verify(tmp_path / "out", base, [adapter]).ok
    again = library.merge(tmp_path / "out", [adapter], tmp_path / "one", weights=[0], max_shard_size="1GB")
    assert sizes(tmp_path / "one").keys() == {"model.safetensors"} and not (tmp_path / "one" / INDEX).exists()
    assert not again.elements_changed or again.elements_changed == (0,)
    assert all(same_bits(tensor, found[name]) for name, tensor in load(tmp_path / "one").items())


def test_order_is_the_base_s_and_a_large_tensor_is_alone(tmp_path: Path) -> None:
    made = {"a": torch.ones(8), "b": torch.ones(4000), "c": torch.ones(8), "d": torch.ones(8).bfloat16()}
    base = write_checkpoint(tmp_path / "base", made)
    adapter = write_adapter(tmp_path / "adapter", {"c": torch.zeros(8)})
    report = library.merge(base, [adapter], tmp_path / "out", max_shard_size=1000)
    assert in_order(tmp_path / "out") == in_order(base)
    assert [len(load_state_dict_from_file(tmp_path / "out" / name)) for name in sizes(tmp_path / "out")] == [1, 1, 2]
    assert any("1 of 3 files are larger than --max-shard-size" in note for note in report.notes)


def test_what_decodes_grows_and_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes and scales lie in several files; and what grows is told, where nothing is asked for."""
    plain = {f"{Q}.weight": torch.randn(8, 6).bfloat16()}
    made = FORMATS["INT4"]()
    config = {"model_type": "llama", "tie_word_embeddings": False, "quantization_config": made.config}
    base = write_checkpoint(tmp_path / "base", plain | dict(made.tensors), shards=3, config=config)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (21, 70)))
    monkeypatch.setattr(sharding, "_LARGE", 100)
    report = library.merge(base, [adapter], tmp_path / "plain", dtype="bf16")
    assert any("--max-shard-size 5GB divides them" in note for note in report.notes)
    library.merge(base, [adapter], tmp_path / "out", dtype="bf16", max_shard_size="1KiB", verify=True)
    one, other = load(tmp_path / "plain"), load(tmp_path / "out")
    assert one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)
    assert len(sizes(tmp_path / "out")) == 2
    assert library.verify(tmp_path / "out", base, [adapter]).ok


def test_what_stays_codes_is_divided_too(tmp_path: Path) -> None:
    made = FORMATS["FP8, blocks"]()
    config = {"model_type": "llama", "tie_word_embeddings": False, "quantization_config": made.config}
    base = write_checkpoint(tmp_path / "base", {f"{Q}.weight": torch.ones(8, 6), **made.tensors}, config=config)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (20, 72)))
    library.merge(base, [adapter], tmp_path / "plain", quantise="keep")
    library.merge(base, [adapter], tmp_path / "out", quantise="keep", max_shard_size=700)
    one, other = load(tmp_path / "plain"), load(tmp_path / "out")
    assert one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)
    assert len(sizes(tmp_path / "out")) == 2


def test_a_sweep_in_such_files_is_loaded_by_transformers(tmp_path: Path) -> None:
    library.wise(FIXTURES / "base", FIXTURES / "lora", tmp_path / "out", [0.5, 1], max_shard_size="20KB")
    library.merge(FIXTURES / "base", [FIXTURES / "lora"], tmp_path / "plain")
    assert len(sizes(tmp_path / "out" / "alpha-1.000")) > 1
    one, other = (LlamaForCausalLM.from_pretrained(tmp_path / name) for name in ("plain", "out/alpha-1.000"))
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(left.equal(right) for left, right in pairs)


def test_names_of_other_files(tmp_path: Path) -> None:
    """Of diffusers, with a variant; and the head of an adapter takes the place of another."""
    folder = tmp_path / "unet"
    folder.mkdir()
    save_file(tensors(), folder / "diffusion_pytorch_model.fp16.safetensors")
    (folder / "config.json").write_text("{}")
    adapter = write_adapter(tmp_path / "adapter", lora_factors(NAMES[0], (24, 16)))
    library.merge(folder, [adapter], tmp_path / "out", max_shard_size="2KB")
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors.index.fp16.json").exists()
    assert all(name.startswith("diffusion_pytorch_model.fp16-0000") for name in sizes(tmp_path / "out"))
    assert library.verify(tmp_path / "out", folder, [adapter]).ok


def test_sizes_as_they_are_typed() -> None:
    good = {"5GB": 5 * 10**9, "4GiB": 4 << 30, "500 mb": 5 * 10**8, "1.5KB": 1500, "7": 7, "7B": 7, "2TB": 2 * 10**12}
    assert {text: parse_size(text) for text in good} == good and parse_size(12) == 12 and parse_size(None) is None
    for text in ("", "5 GB each", "-5GB", "GB", "0", "0.1", "5PB", "nan"):
        with pytest.raises(UsageError, match="a size such as 5GB"):
            parse_size(text)
    for number in (0, -1, True, 1.5):
        with pytest.raises(UsageError, match="a size such as 5GB"):
            parse_size(number)  # type: ignore[arg-type]


def test_refused_where_the_output_is_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_checkpoint(tmp_path / "base", tensors())
    adapter = write_adapter(tmp_path / "adapter", lora_factors(NAMES[0], (24, 16)))
    file, more = str(base / "model.safetensors"), ["--max-shard-size", "1KB", "-o", str(tmp_path / "out")]
    assert main_here(["merge", file, str(adapter), *more], monkeypatch) == 2
    assert main_here(["wise", str(base), str(adapter), "--alpha", "0.5", "--as-adapter", *more], monkeypatch) == 2
    assert capsys.readouterr().err.count("--max-shard-size is for folders of a model") == 2
    pipeline = tmp_path / "pipeline"
    write_checkpoint(pipeline / "unet", tensors())
    (pipeline / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    with pytest.raises(UnsupportedError, match="give the folder of the component"):
        library.prepare_merge(pipeline, [adapter], max_shard_size="1GB")
