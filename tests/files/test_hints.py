"""Hints for what was given as a checkpoint by mistake."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import lora_factors, write_adapter, write_checkpoint
from opened import TENSORS, put, refusal

from adaptertool.files.checkpoint import INDEX, SINGLE

# Hints for what was given by mistake.


def test_adapter_given_as_checkpoint(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora_factors("q_proj", (4, 4)))
    message = refusal(adapter)
    assert "is an adapter" in message
    assert "the checkpoint comes first" in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickles_only(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    message = refusal(tmp_path)
    assert name in message
    assert "pickle" in message


def test_weights_of_another_name(single: Path) -> None:
    (single / SINGLE).rename(single / "diffusion.safetensors")
    message = refusal(single)
    assert "diffusion.safetensors" in message
    assert "give the path of that file" in message


def test_empty_directory(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert SINGLE in message
    assert INDEX in message


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("meta-llama/Llama-3.1-8B", "hf download meta-llama/Llama-3.1-8B"),
        ("nowhere", "does not exist"),
        ("/nowhere/at/all", "does not exist"),
        ("\x1b[31m/x", "does not exist"),
        ("x" * 300, "x" * 300),
        ("x" * 300 + ".safetensors", "x" * 300),
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_path_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, part: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in refusal(Path(given))


def test_only_a_hub_id_gets_the_hint_of_the_hub(tmp_path: Path) -> None:
    assert "hf download" not in refusal(tmp_path / "a" / "b")


def test_folder_of_the_cache_of_the_hub(tmp_path: Path) -> None:
    """The checkpoint lies in a snapshot: of several the present one is named first."""
    root = tmp_path / "models--org--small"
    for snapshot in ("0123abcd", "ffff0000"):
        write_checkpoint(root / "snapshots" / snapshot, TENSORS)
        (root / "blobs").mkdir(exist_ok=True)
    assert f"give one of {root}/snapshots/0123abcd, {root}/snapshots/ffff0000" in refusal(root)
    put(root, "refs/main")
    (root / "refs" / "main").write_text("ffff0000\n")
    assert f"give one of {root}/snapshots/ffff0000, {root}/snapshots/0123abcd" in refusal(root)
    shutil.rmtree(root / "snapshots" / "0123abcd")
    assert f"there is one in {root}/snapshots/ffff0000: give that path" in refusal(root)
    assert f"there is one in {root}/snapshots/ffff0000" in refusal(root / "snapshots")


def test_checkpoints_one_level_down(tmp_path: Path) -> None:
    for number in (1000, 500):
        write_checkpoint(tmp_path / f"checkpoint-{number}", TENSORS)
    assert f"give one of {tmp_path}/checkpoint-500, {tmp_path}/checkpoint-1000" in refusal(tmp_path)


def test_index_given_in_place_of_its_directory(sharded: Path) -> None:
    assert "give the directory" in refusal(sharded / INDEX)


@pytest.mark.parametrize("name", ["model.bin", "model.gguf", "model"])
def test_file_of_another_kind(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    assert f"{name} is neither a directory nor a .safetensors file" in refusal(tmp_path / name)


def test_fifo_given_as_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SINGLE)
    assert "not a regular file" in refusal(tmp_path / SINGLE)
