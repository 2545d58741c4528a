"""Opening a checkpoint: index and shards must agree to the letter, shards lie where they should, assets travel."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lora_factors, write_adapter, write_checkpoint
from safetensors.torch import save_file

from adaptertool.errors import InputError
from adaptertool.files.checkpoint import INDEX, MANIFEST, SINGLE, Checkpoint
from adaptertool.formats.checkpoints import open_checkpoint

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {name: torch.full((2, 3), float(number)) for number, name in enumerate("abcd")}  # a, c | b, d


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", TENSORS)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", TENSORS, shards=2)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.isprintable()
    return message


def edit_index(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((root / INDEX).read_text())
    change(index)
    (root / INDEX).write_text(json.dumps(index))


def asset_names(checkpoint: Checkpoint) -> set[str]:
    return {asset.name for asset in checkpoint.assets}


# What a good checkpoint holds.


def test_single_file_in_a_directory(single: Path) -> None:
    checkpoint = open_checkpoint(single)
    assert [header.path.name for header in checkpoint.headers] == [SINGLE]
    assert checkpoint.tensors.keys() == TENSORS.keys()
    assert checkpoint.config == {"model_type": "llama", "tie_word_embeddings": False}
    assert (asset_names(checkpoint), checkpoint.notes, checkpoint.is_file) == ({"config.json"}, (), False)


def test_shards_with_an_index(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert [header.path.name for header in checkpoint.headers] == [FIRST, SECOND]
    where = {name: ref.path.name for name, ref in checkpoint.tensors.items()}
    assert where == {"a": FIRST, "c": FIRST, "b": SECOND, "d": SECOND}
    assert (asset_names(checkpoint), checkpoint.notes) == ({"config.json", INDEX}, ())


def test_one_file_has_no_assets_but_heeds_the_config_beside_it(single: Path) -> None:
    checkpoint = open_checkpoint(single / SINGLE)
    assert checkpoint.tensors.keys() == TENSORS.keys()
    assert checkpoint.config == {"model_type": "llama", "tie_word_embeddings": False}
    assert (checkpoint.assets, checkpoint.is_file) == ((), True)
    (single / "config.json").unlink()
    assert open_checkpoint(single / SINGLE).config is None


def test_index_with_one_shard_of_any_plain_name(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "base", TENSORS)
    (root / SINGLE).rename(root / "weights v1.0.safetensors")
    (root / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "weights v1.0.safetensors")}))
    assert open_checkpoint(root).headers[0].path == root / "weights v1.0.safetensors"


# The index.

BAD_SHARD_NAMES = [
    "../model.safetensors", "../../etc/x.safetensors", "sub/model.safetensors", "/etc/model.safetensors",
    "./x.safetensors", "sub\\x.safetensors", "..\\x.safetensors", "C:x.safetensors", "C:\\x.safetensors",
    "\\\\host\\share\\x.safetensors", "..safetensors/../x.safetensors", "..", ".", "", "model", "model.bin",
    "pytorch_model.bin", "config.json", "a\0b.safetensors", "model.safetensors\0", "\0.safetensors", "x.safetensors/",
    "x.safetensors ", "x" * 300 + ".safetensors", "nowhere.safetensors", "\x1b[31m.safetensors", "a\nb.safetensors",
    "\ud800.safetensors", "\udc80.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_SHARD_NAMES, ids=ascii)
def test_shard_names_that_are_not_plain_or_not_there(sharded: Path, name: str) -> None:
    (sharded / "sub").mkdir()
    for place in (sharded / "sub" / SINGLE, sharded.parent / SINGLE):  # what a climbing name would reach
        shutil.copy(sharded / FIRST, place)
    edit_index(sharded, lambda index: index["weight_map"].update(a=name))
    message = refusal(sharded)
    assert "base" in message
    assert "shard" in message or "missing" in message


@pytest.mark.parametrize("name", ["\x1b[31m.safetensors", "a\nb.safetensors"], ids=ascii)
def test_messages_escape_the_names_of_shards(sharded: Path, name: str) -> None:
    (sharded / name).write_bytes(b"")
    edit_index(sharded, lambda index: index["weight_map"].update(a=name))
    assert name[2:] in refusal(sharded)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "{", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": null}',
        '{"weight_map": "a"}',
        '{"weight_map": {"a": null}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": ["x.safetensors"]}}',
        f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}',
        f'{{"weight_map": {{"a": "{FIRST}", "\\u0061": "{FIRST}"}}}}',
        f'{{"weight_map": {{}}, "weight_map": {{"a": "{FIRST}"}}}}',
        '{"metadata": {"total_size": NaN}, "weight_map": {}}',
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "<!doctype html>", "[" * 100_000,
    ],
    ids=lambda text: repr(text[:40]),
)  # fmt: skip
def test_malformed_index(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    assert INDEX in refusal(sharded)


def test_tensor_in_the_index_but_not_in_its_shard(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"model.extra": SECOND}))
    message = refusal(sharded)
    assert "model.extra" in message
    assert SECOND in message


def test_tensor_in_a_shard_but_not_in_the_index(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].pop("d"))
    message = refusal(sharded)
    assert f"{SECOND} holds d" in message
    assert INDEX in message


def test_tensor_that_the_index_puts_in_the_other_shard(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update(a=SECOND))
    message = refusal(sharded)
    assert f"{FIRST} holds a" in message
    assert INDEX in message


def test_tensor_that_stands_in_two_shards(sharded: Path) -> None:
    save_file({name: TENSORS[name] for name in "abd"}, sharded / SECOND)
    assert f"{SECOND} holds a" in refusal(sharded)


def test_names_in_such_messages_are_escaped(sharded: Path) -> None:
    save_file({"b": TENSORS["b"], "d": TENSORS["d"], "\x1b[31m": TENSORS["a"]}, sharded / SECOND)
    assert "\\x1b[31m" in refusal(sharded)


def test_missing_shard(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    message = refusal(sharded)
    assert SECOND in message
    assert "missing" in message


def test_broken_shard_is_named(sharded: Path) -> None:
    os.truncate(sharded / SECOND, (sharded / SECOND).stat().st_size - 1)
    message = refusal(sharded)
    assert SECOND in message
    assert "cut short" in message


@pytest.mark.parametrize("kind", ["fifo", "directory"])
@pytest.mark.parametrize("name", [FIRST, INDEX, "config.json"])
def test_what_is_no_regular_file(sharded: Path, name: str, kind: str) -> None:
    (sharded / name).unlink()
    os.mkfifo(sharded / name) if kind == "fifo" else (sharded / name).mkdir()
    assert f"{name} is not a regular file" in refusal(sharded)


def test_both_single_and_index(sharded: Path) -> None:
    save_file(TENSORS, sharded / SINGLE)
    message = refusal(sharded)
    assert f"both {SINGLE} and {INDEX}" in message


@pytest.mark.parametrize("stray", ["model-00003-of-00003.safetensors", "model-1-of-2.safetensors"])
def test_stray_shard_beside_a_single_file(single: Path, stray: str) -> None:
    shutil.copy(single / SINGLE, single / stray)
    assert f"holds {stray}" in refusal(single)


@pytest.mark.parametrize("stray", ["model-00003-of-00003.safetensors", "model-1-of-2.safetensors"])
def test_stray_shard_whose_tensors_are_all_indexed_elsewhere(sharded: Path, stray: str) -> None:
    """Left over from a save in more shards: loaders go by the index."""
    save_file({"a": torch.ones(5), "d": torch.ones(1)}, sharded / stray)
    checkpoint = open_checkpoint(sharded)
    (note,) = checkpoint.notes
    assert stray in note and "stale" in note
    assert checkpoint.tensors["a"].path == sharded / FIRST and stray not in asset_names(checkpoint)


@pytest.mark.parametrize("content", ["another tensor", "cut"])
def test_stray_shard_that_may_be_needed(sharded: Path, content: str) -> None:
    stray = sharded / "model-00003-of-00003.safetensors"
    save_file({"a": torch.ones(5), "only here": torch.ones(1)}, stray)
    if content == "cut":
        os.truncate(stray, 20)
    message = refusal(sharded)
    assert f"holds {stray.name}, but the index does not name it" in message
    assert ("only here is in no other file" if content != "cut" else "cut short") in message


TRAINER = (
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth", "latest",
    "random_states_0.pkl", "trainer_state.json", "training_args.bin", "zero_to_fp32.py", "model.onnx",
    "model.onnx_data", "events.out.tfevents.1700000000.host.1.0",
)  # fmt: skip
TRAINER_FOLDERS = ("global_step500", "checkpoint-500", "runs", "wandb", "optimizer_0")


@pytest.mark.parametrize("shards", [1, 2])
def test_folder_of_a_trainer(tmp_path: Path, shards: int) -> None:
    """Its state is no part of the model, and is as large as three of it."""
    root = write_checkpoint(tmp_path / "base", TENSORS, shards=shards)
    put(root, "tokenizer.json", "modeling.py", *TRAINER, *(f"{folder}/part.pt" for folder in TRAINER_FOLDERS))
    checkpoint = open_checkpoint(root)
    kept = {"config.json", "tokenizer.json", "modeling.py"} | ({INDEX} if shards > 1 else set())
    assert asset_names(checkpoint) == kept
    (note,) = checkpoint.notes
    assert set(note.split(": ", 1)[1].split(", ")) == {*TRAINER, *(f"{folder}/" for folder in TRAINER_FOLDERS)}


def test_what_we_made_inside_a_folder_is_no_part_of_it(single: Path) -> None:
    put(single, f"merged/{MANIFEST}", "merged/model.safetensors", ".merged.adaptertool-0123456789abcdef/lock")
    checkpoint = open_checkpoint(single)
    assert asset_names(checkpoint) == {"config.json"}
    assert "merged/" in checkpoint.notes[0]


@pytest.mark.parametrize("claimed", [0, 95, 97, "96", -1, 1e300, [], True])
def test_wrong_total_size_is_a_note(sharded: Path, claimed: object) -> None:
    edit_index(sharded, lambda index: index["metadata"].update(total_size=claimed))
    (note,) = open_checkpoint(sharded).notes
    assert "total_size" in note
    assert "96" in note


@pytest.mark.parametrize("metadata", [None, {}, [], {"total_size": 96}, {"total_parameters": 24}])
def test_index_without_a_wrong_size_has_no_note(sharded: Path, metadata: object) -> None:
    edit_index(sharded, lambda index: index.update(metadata=metadata))
    assert open_checkpoint(sharded).notes == ()


# Links.


def hub_cache(folder: Path, source: Path) -> Path:
    """The layout of huggingface_hub: snapshots of relative links into blobs."""
    snapshot, blobs = folder / "models--x--y" / "snapshots" / "0123abc", folder / "models--x--y" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in source.iterdir():
        blob = f"blob-of-{file.name}".replace(".", "-")
        shutil.copy(file, blobs / blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob)
    return snapshot


@pytest.mark.parametrize("shards", [1, 2])
def test_hub_cache_is_read(tmp_path: Path, shards: int) -> None:
    snapshot = hub_cache(tmp_path, write_checkpoint(tmp_path / "base", TENSORS, shards=shards))
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.tensors.keys() == TENSORS.keys()
    assert "config.json" in asset_names(checkpoint)
    assert {header.path.parent for header in checkpoint.headers} == {
        snapshot
    }  # names of the snapshot, not of the blobs


def test_hub_cache_through_a_link_to_the_snapshot(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, write_checkpoint(tmp_path / "base", TENSORS, shards=2))
    (tmp_path / "link").symlink_to(snapshot)
    assert open_checkpoint(tmp_path / "link").tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("target", ["../../blobs/../outside", "../../../outside", "../../outside"])
def test_hub_cache_link_beside_the_blobs(tmp_path: Path, target: str) -> None:
    snapshot = hub_cache(tmp_path, write_checkpoint(tmp_path / "base", TENSORS))
    real = (snapshot / SINGLE).resolve()
    (snapshot / SINGLE).unlink()
    (snapshot / SINGLE).symlink_to(target)
    shutil.copy(real, Path(os.path.normpath(snapshot / target)))
    assert "leads out of the checkpoint" in refusal(snapshot)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("absolute", [True, False])
def test_shard_that_is_a_link_out_of_the_checkpoint(tmp_path: Path, shards: int, absolute: bool) -> None:
    root = write_checkpoint(tmp_path / "base", TENSORS, shards=shards)
    shard = sorted(root.glob("*.safetensors"))[0]
    outside = tmp_path / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside if absolute else Path("..") / outside.name)
    message = refusal(root)
    assert f"{shard} is a link that leads out of the checkpoint" in message


def test_shard_that_is_a_link_within_the_checkpoint(sharded: Path) -> None:
    (sharded / FIRST).rename(sharded / "first.safetensors")
    (sharded / FIRST).symlink_to("first.safetensors")
    assert open_checkpoint(sharded).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("target", ["nowhere", FIRST], ids=["dangling", "to itself"])
def test_shard_that_is_a_link_to_nothing(sharded: Path, target: str) -> None:
    (sharded / FIRST).unlink()
    (sharded / FIRST).symlink_to(target)
    assert FIRST in refusal(sharded)


# Assets.


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


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


@pytest.mark.parametrize("given", ["https://huggingface.co/org/small", "http://hf.co/org/small/tree/main"])
def test_an_address_of_the_hub_is_no_path(given: str) -> None:
    assert "hf download org/small --local-dir" in refusal(Path(given))


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
