"""Assets of a checkpoint: what travels, what is left out and named, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import write_checkpoint
from opened import TENSORS, asset_names, put, refusal

from adaptertool.files.checkpoint import INDEX, MANIFEST
from adaptertool.formats.checkpoints import open_checkpoint

# Assets.


KEPT = (
    "tokenizer.json", "README.md", "LICENSE", ".gitattributes", "chat_template.jinja", "modeling_x.py", "spiece.model",
    "1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "a/b/c/d.txt", "vocab.bin",
    "sub/config.json", "sub/.cache/x", "assets/original/x",
)  # fmt: skip
LEFT = (
    "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "consolidated.safetensors",
    "consolidated.00.pth", "tf_model.h5", "flax_model.msgpack", "model.ckpt.index", "rust_model.ot", "model-q4.gguf",
    "consolidated.safetensors.index.json", "model.fp16.safetensors",
)  # fmt: skip
LEFT_FOLDERS = (".git", ".cache", "original", "onnx", "openvino", "coreml", "metal")


@pytest.mark.parametrize("shards", [1, 2])
def test_assets_are_kept_and_other_weights_are_left_out_and_named(tmp_path: Path, shards: int) -> None:
    root = write_checkpoint(tmp_path / "base", TENSORS, shards=shards)
    put(root, *KEPT, *LEFT, *(f"{folder}/config" for folder in LEFT_FOLDERS))
    checkpoint = open_checkpoint(root)
    assert asset_names(checkpoint) == {*KEPT, "config.json"} | ({INDEX} if shards > 1 else set())
    (note,) = checkpoint.notes
    assert set(note.split(": ", 1)[1].split(", ")) == {*LEFT, *(f"{folder}/" for folder in LEFT_FOLDERS)}
    for asset in checkpoint.assets:
        assert asset.source == root / asset.name
        assert asset.size == (root / asset.name).stat().st_size


def test_order_of_assets_does_not_depend_on_the_directory(tmp_path: Path) -> None:
    listings = []
    for number, names in enumerate([("z", "b/y", "b/x", "a/z", "m"), ("m", "a/z", "b/x", "b/y", "z")]):
        root = write_checkpoint(tmp_path / str(number), TENSORS)
        put(root, *names)
        listings.append([asset.name for asset in open_checkpoint(root).assets])
    assert listings[0] == listings[1]


def test_manifest_of_an_earlier_run_is_no_asset(single: Path) -> None:
    put(single, MANIFEST)
    checkpoint = open_checkpoint(single)
    assert asset_names(checkpoint) == {"config.json"}


@pytest.mark.parametrize("name", ["pipe", "sub/pipe"])
@pytest.mark.parametrize("kind", ["fifo", "dangling link", "link to itself", "device"])
def test_odd_file_among_the_assets_is_refused(single: Path, name: str, kind: str) -> None:
    odd = single / name
    odd.parent.mkdir(exist_ok=True)
    if kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"dangling link": "nowhere", "link to itself": odd.name, "device": "/dev/null"}[kind])
    assert name in refusal(single)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_dangling_link_in_place_of_a_file_of_meaning_is_refused(single: Path, name: str) -> None:
    (single / name).unlink(missing_ok=True)
    (single / name).symlink_to("nowhere")
    assert name in refusal(single)


def test_odd_asset_name_is_escaped(single: Path) -> None:
    os.mkfifo(single / "\x1b[31m")
    assert "\\x1b[31m" in refusal(single)


def test_asset_may_be_a_link_to_a_file_and_a_linked_folder_is_said(single: Path, tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/tokenizer.json")
    (single / "tokenizer.json").symlink_to(tmp_path / "elsewhere" / "tokenizer.json")
    (single / "folder").symlink_to(tmp_path / "elsewhere")
    checkpoint = open_checkpoint(single)
    assert asset_names(checkpoint) == {"config.json", "tokenizer.json"}
    assert "folder/" in checkpoint.notes[0]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":1,"a":2}', '{"vocab_size": NaN}'])
def test_malformed_config(single: Path, text: str) -> None:
    (single / "config.json").write_text(text)
    assert "config.json" in refusal(single)


def test_checkpoint_without_config(single: Path) -> None:
    (single / "config.json").unlink()
    assert open_checkpoint(single).config is None
