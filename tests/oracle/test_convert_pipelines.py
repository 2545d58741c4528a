"""Adapters of a tiny Stable Diffusion XL from each spelling into each format, by the folder of the pipeline and by the
single file: merged, they are the same bits as before."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("diffusers")

import pipelines
import torch
from conftest import load
from diffusers import FluxTransformer2DModel
from pipelines import TEXT, TEXT_2, UNET, Tensors
from safetensors.torch import save_file

import adaptertool


class Model(NamedTuple):
    folder: Path
    file: Path
    adapters: dict[str, Path]
    merged: Tensors  # of the single file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    root = tmp_path_factory.mktemp("sdxl")
    folder, file = pipelines.write_pipeline(root / "pipeline"), root / "sdxl.safetensors"
    tensors = pipelines.tensors_of(folder)
    save_file(pipelines.single_file(tensors), file)
    factors = pipelines.factors_for(tensors, pipelines.modules_of(tensors))
    texts = {TEXT: "text_encoders.clip_l.transformer.", TEXT_2: "text_encoders.clip_g.transformer."}
    adapters = {
        "kohya": pipelines.write_kohya(root / "kohya.safetensors", factors, sgm=False),
        "kohya, sgm": pipelines.write_kohya(root / "sgm.safetensors", factors, sgm=True),
        "diffusers": pipelines.write_dotted(
            root / "diffusers.safetensors", factors, {part: f"{part}." for part in (UNET, TEXT, TEXT_2)}
        ),
        "comfy": pipelines.write_dotted(root / "comfy.safetensors", factors, {UNET: "diffusion_model.", **texts}),
    }
    adaptertool.merge(file, [adapters["kohya"]], root / "merged.safetensors")
    return Model(folder, file, adapters, load(root / "merged.safetensors"))


def require_same(model: Model, adapter: Path, out: Path) -> None:
    adaptertool.merge(model.file, [adapter], out)
    found = load(out)
    assert all(tensor.equal(found[name]) for name, tensor in model.merged.items())


@pytest.mark.long("spelling")
@pytest.mark.parametrize("spelling", ["kohya", "kohya, sgm", "diffusers", "comfy"])
@pytest.mark.parametrize("to", ["kohya", "diffusers", "comfy"])
@pytest.mark.parametrize("by", ["folder", "file"])
def test_all_parts(model: Model, tmp_path: Path, spelling: str, to: str, by: str) -> None:
    if to == spelling.partition(",")[0]:
        return
    out, base = tmp_path / "out.safetensors", model.folder if by == "folder" else model.file
    report = adaptertool.convert(model.adapters[spelling], out, to=to, base=base)
    assert report.rounded == 0
    require_same(model, out, tmp_path / "merged.safetensors")
    if to == "comfy":
        assert any(key.startswith("diffusion_model.input_blocks.") for key in load(out))
    if to == "diffusers":
        assert any(key.startswith("unet.down_blocks.") for key in load(out))


@pytest.mark.parametrize("spelling", ["kohya", "kohya, sgm", "diffusers", "comfy"])
@pytest.mark.parametrize("part", [UNET, TEXT])
def test_one_part_as_pefts(model: Model, tmp_path: Path, spelling: str, part: str) -> None:
    report = adaptertool.convert(
        model.adapters[spelling], tmp_path / "peft", to="peft", base=model.folder, parts=[part]
    )
    assert report.rounded == 0
    assert sum("is left out" in note for note in report.notes) == 2
    one = model.folder / part
    adaptertool.merge(one, [tmp_path / "peft"], tmp_path / "merged")
    adaptertool.merge(model.folder, [model.adapters[spelling]], tmp_path / "whole")
    found, whole = load(tmp_path / "merged"), load(tmp_path / "whole" / part)
    assert found.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())


FLUX = {  # the original's layers, (in, out), of which diffusers has several, or halves swapped
    "double_blocks_0_img_attn_qkv": (8, 24),
    "single_blocks_0_linear1": (8, 56),
    "double_blocks_0_img_mlp_0": (8, 32),
    "final_layer_adaLN_modulation_1": (8, 16),
}


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    sizes = {"in_channels": 4, "attention_head_dim": 8, "joint_attention_dim": 6, "num_attention_heads": 1}
    model = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, pooled_projection_dim=5, axes_dims_rope=(2, 2, 4), **sizes
    )
    path = tmp_path_factory.mktemp("flux") / "transformer"
    model.save_pretrained(path)
    return path


def flux_file(path: Path, *, dora: bool) -> Path:
    torch.manual_seed(2)
    tensors: Tensors = {}
    for name, (wide, out) in FLUX.items():
        flat = f"lora_unet_{name}"
        tensors |= {f"{flat}.lora_down.weight": torch.randn(3, wide), f"{flat}.lora_up.weight": torch.randn(out, 3)}
        tensors[f"{flat}.alpha"] = torch.tensor(1.5)
        if dora:
            tensors[f"{flat}.dora_scale"] = torch.rand(out, 1) + 0.5
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_layers_that_are_one_in_the_original(flux: Path, tmp_path: Path, to: str, dora: bool) -> None:
    """A is shared, rows of B and of magnitudes are taken apart, and swapped halves are swapped."""
    path = flux_file(tmp_path / "flux.safetensors", dora=dora)
    report = adaptertool.convert(path, tmp_path / "out", to=to, base=flux)
    assert (report.rounded, report.layers) == (0, 3 + 4 + 1 + 1)
    adaptertool.merge(flux, [path], tmp_path / "one")
    adaptertool.merge(flux, [tmp_path / "out"], tmp_path / "two")
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
    changed = [name for name, tensor in load(flux).items() if not tensor.equal(one[name])]
    assert len(changed) == report.layers


@pytest.mark.parametrize("dora", [False, True])
def test_and_back_under_the_names_that_are_there(flux: Path, tmp_path: Path, dora: bool) -> None:
    """Kohya's file has layers of diffusers under diffusers' names, where the base does."""
    adaptertool.convert(flux_file(tmp_path / "a.safetensors", dora=dora), tmp_path / "d", to="diffusers", base=flux)
    adaptertool.convert(tmp_path / "d", out := tmp_path / "out.safetensors", to="kohya", base=flux)
    assert all(key.startswith("lora_transformer_") for key in load(out))
    require_equal_merges(flux, tmp_path, tmp_path / "d", out)


def require_equal_merges(base: Path, folder: Path, *adapters: Path) -> None:
    found = []
    for number, adapter in enumerate(adapters):
        out = folder / f"merged{number}{base.suffix}"
        adaptertool.merge(base, [adapter], out)
        found.append(load(out))
    assert not all(tensor.equal(found[0][name]) for name, tensor in load(base).items())
    assert all(tensor.equal(other[name]) for other in found for name, tensor in found[0].items())
