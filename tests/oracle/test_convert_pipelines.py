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
