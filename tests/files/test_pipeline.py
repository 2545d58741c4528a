"""Pipelines of diffusers as checkpoints: which files are read, which travel, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError
from adaptertool.files.pipeline import holds_weights
from adaptertool.formats.checkpoints import open_checkpoint

UNET, TEXT = "unet/diffusion_pytorch_model", "text_encoder/model"
KEY = "lora_unet_mid_to_q"


def write(folder: Path) -> Path:
    """Two models, one of them in shards, and what lies beside them."""
    classes = {
        "unet": ["diffusers", "UNet"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "vae": ["diffusers", "V"],
    }
    (folder / "unet").mkdir(parents=True)
    (folder / "text_encoder").mkdir()
    (folder / "vae").mkdir()
    index = {"_class_name": "Pipeline", **classes, "text_encoder_2": [None, None], "tokenizer": ["transformers", "T"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    for number, name in enumerate(("mid.to_q.weight", "mid.to_k.weight"), 1):
        save_file({name: torch.randn(4, 4)}, folder / f"{UNET}-0000{number}-of-00002.safetensors")
    weight_map = {f"mid.to_{x}.weight": f"{UNET[5:]}-0000{n}-of-00002.safetensors" for n, x in ((1, "q"), (2, "k"))}
    (folder / f"{UNET}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet"}))
    save_file({"text_model.x.weight": torch.randn(4, 4)}, folder / f"{TEXT}.safetensors")
    (folder / "text_encoder" / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModel"]}))
    save_file({"decoder.weight": torch.randn(4, 4)}, folder / "vae" / "diffusion_pytorch_model.safetensors")
    return folder


def write_adapter(path: Path) -> Path:
    save_file({f"{KEY}.lora_down.weight": torch.randn(2, 4), f"{KEY}.lora_up.weight": torch.randn(4, 2)}, path)
    return path


def test_each_file_is_where_it_was_and_only_what_is_changed_is_other(tmp_path: Path) -> None:
    base, out = write(tmp_path / "base"), tmp_path / "out"
    (base / "old.ckpt").write_bytes(b"x")
    (base / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    report = adaptertool.merge(base, [write_adapter(tmp_path / "a.safetensors")], out)
    names = sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file())
    same = [
        name for name in names if (base / name).exists() and (base / name).read_bytes() == (out / name).read_bytes()
    ]
    assert sorted(set(names) - set(same)) == ["adaptertool.manifest.json", f"{UNET}-00001-of-00002.safetensors"]
    assert "vae/diffusion_pytorch_model.safetensors" in same
    assert any("old.ckpt" in note for note in report.notes)
    assert any("diffusion_pytorch_model.bin" in note for note in report.notes)
    assert adaptertool.check_files(out).ok
    adaptertool.merge(base, [tmp_path / "a.safetensors"], out, force=True)
    assert not adaptertool.diff(base, out).equal


def test_tensors_have_the_folder_before_their_names(tmp_path: Path) -> None:
    opened = open_checkpoint(write(tmp_path / "base"))
    assert list(opened.tensors) == ["unet.mid.to_q.weight", "unet.mid.to_k.weight", "text_encoder.text_model.x.weight"]
    assert opened.components == ("unet", "text_encoder")
    assert holds_weights(tmp_path / "base")
    assert holds_weights(tmp_path / "base" / "unet")
    assert not holds_weights(tmp_path)


def test_one_variant_alone_is_read_and_keeps_its_name(tmp_path: Path) -> None:
    base = write(tmp_path / "base")
    (base / f"{TEXT}.safetensors").rename(base / f"{TEXT}.fp16.safetensors")
    for file in sorted((base / "unet").glob("*.safetensors")):
        file.rename(file.with_name(file.name.replace("model-", "model.fp16-")))
    index = base / f"{UNET}.safetensors.index.json"
    index.with_name(f"{UNET[5:]}.safetensors.index.fp16.json").write_text(index.read_text().replace("l-0", "l.fp16-0"))
    index.unlink()
    adaptertool.merge(base, [write_adapter(tmp_path / "a.safetensors")], tmp_path / "out")
    assert load_file(tmp_path / "out" / f"{UNET}.fp16-00001-of-00002.safetensors").keys() == {"mid.to_q.weight"}


def test_of_variants_the_plain_one_is_read_and_the_others_stay_behind(tmp_path: Path) -> None:
    base, out = write(tmp_path / "base"), tmp_path / "out"
    save_file({"text_model.x.weight": torch.ones(4, 4)}, base / f"{TEXT}.fp16.safetensors")
    for number, name in enumerate(("q", "k"), 1):
        part = f"{UNET}.fp16-0000{number}-of-00002.safetensors"
        save_file({f"mid.to_{name}.weight": torch.ones(4, 4)}, base / part)
    index = json.loads((base / f"{UNET}.safetensors.index.json").read_text())["weight_map"]
    renamed = {name: file.replace("model-", "model.fp16-") for name, file in index.items()}
    (base / f"{UNET}.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": renamed}))
    save_file({"decoder.weight": torch.ones(4, 4)}, base / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    report = adaptertool.merge(base, [write_adapter(tmp_path / "a.safetensors")], out)
    kept = sorted(file.relative_to(out).as_posix() for file in out.rglob("*fp16*"))
    assert kept == ["vae/diffusion_pytorch_model.fp16.safetensors"]  # which is what it was
    assert any(
        "unet holds variants of one model: diffusion_pytorch_model.safetensors is read" in n for n in report.notes
    )
    assert any("left out" in note and f"{UNET[5:]}.safetensors.index.fp16.json" in note for note in report.notes)
    assert not load_file(out / f"{UNET}-00001-of-00002.safetensors")["mid.to_q.weight"].equal(torch.ones(4, 4))
    assert adaptertool.verify(out, base, [tmp_path / "a.safetensors"]).ok


def test_a_vae_is_no_denoiser(tmp_path: Path) -> None:
    base = write(tmp_path / "base")
    (base / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(MismatchError, match=r"1 of 1 modules of .* have no tensor in .*vae"):
        adaptertool.merge(base / "vae", [write_adapter(tmp_path / "a.safetensors")], tmp_path / "out")


def test_the_cache_of_the_hub(tmp_path: Path) -> None:
    """Files are links to blobs, also those in the folders of a snapshot."""
    base, cache = write(tmp_path / "base"), tmp_path / "models--x--y"
    (cache / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(file for file in base.rglob("*") if file.is_file())):
        link = cache / "snapshots" / "abc" / file.relative_to(base)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(cache / "blobs" / str(number))
        link.symlink_to(cache / "blobs" / str(number))
    adaptertool.merge(cache / "snapshots" / "abc", [write_adapter(tmp_path / "a.safetensors")], tmp_path / "out")
    assert adaptertool.check_files(tmp_path / "out").ok


def _only_variants(base: Path) -> None:
    (base / f"{TEXT}.safetensors").rename(base / f"{TEXT}.non_ema.safetensors")
    save_file({"text_model.x.weight": torch.ones(4, 4)}, base / f"{TEXT}.fp16.safetensors")


def _only_a_pickle(base: Path) -> None:
    (base / f"{TEXT}.safetensors").rename(base / "text_encoder" / "pytorch_model.bin")


def _without_a_folder(base: Path) -> None:
    for file in (base / "text_encoder").iterdir():
        file.unlink()
    (base / "text_encoder").rmdir()


def _without_models(base: Path) -> None:
    (base / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "V"]}))


def _shard_that_is_missing(base: Path) -> None:
    (base / f"{UNET}-00002-of-00002.safetensors").unlink()


def _out_of_the_folder(base: Path) -> None:
    file = base / f"{TEXT}.safetensors"
    file.rename(base.parent / "elsewhere.safetensors")
    file.symlink_to(base.parent / "elsewhere.safetensors")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            _only_variants,
            r"2 variants of one model: model\.fp16\.safetensors, model\.non_ema\.safetensors; which",
        ),
        (_only_a_pickle, r"text_encoder has only pickled weights \(pytorch_model\.bin\)"),
        (_without_a_folder, r"model_index\.json names text_encoder, but .*text_encoder is not there"),
        (_without_models, r"names no model that adapters change"),
        (_shard_that_is_missing, r"00002-of-00002\.safetensors is missing"),
        (_out_of_the_folder, r"is a link that leads out of the checkpoint"),
    ],
)
def test_refused_by_name(tmp_path: Path, change: Callable[[Path], None], match: str) -> None:
    base = write(tmp_path / "base")
    change(base)
    with pytest.raises(InputError, match=match):
        adaptertool.merge(base, [write_adapter(tmp_path / "a.safetensors")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_dtype_is_for_one_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="is a pipeline; --dtype is for single models"):
        open_checkpoint(write(tmp_path / "base"), "bf16")
