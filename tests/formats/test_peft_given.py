"""What people give in the place of an adapter or of a base, and what the message says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import lora_factors, write_adapter, write_checkpoint
from peft_files import BASE, UNTIED, Q, adapter, base_of, edits, refusal
from safetensors.torch import load_file

import adaptertool
from adaptertool.errors import AdapterToolError, InputError, UnsupportedError, UsageError

# What was given as an adapter.


def test_adapter_path_that_is_not_there(base: Path) -> None:
    assert "does not exist" in refusal(base, base.parent / "\x1b[31m")


def test_adapter_path_that_is_too_long(base: Path) -> None:
    assert "xxx" in refusal(base, base.parent / ("x" * 300))


def test_file_given_as_adapter(base: Path) -> None:
    assert "give the folder" in refusal(base, adapter(base) / "adapter_model.safetensors")


def test_checkpoint_given_as_adapter(base: Path) -> None:
    told = refusal(base, base)
    assert "mixed with its base by `wise`" in told and "made an adapter by `extract`" in told


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


@pytest.mark.parametrize(
    ("given", "error"), [("someone/my-lora", InputError), ("https://huggingface.co/someone/my-lora", UsageError)]
)
def test_adapter_by_its_name_on_the_hub(base: Path, given: str, error: type[AdapterToolError]) -> None:
    assert "hf download someone/my-lora` first" in refusal(base, Path(given), error)


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
