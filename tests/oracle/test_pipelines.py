"""Adapters on a tiny Stable Diffusion XL: on the pipeline of diffusers and on the single file of the original
repository, in all spellings, held against float64; single file and pipeline against diffusers' own converters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("diffusers")

import pipelines
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from oracle import half_ulp_excess
from pipelines import TEXT, TEXT_2, UNET, Tensors
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import MismatchError, UsageError


class Model(NamedTuple):
    folder: Path
    file: Path
    tensors: Tensors
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    exact: Tensors


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    root = tmp_path_factory.mktemp("sdxl")
    folder = pipelines.write_pipeline(root / "pipeline")
    tensors = pipelines.tensors_of(folder)
    save_file(pipelines.single_file(tensors), root / "sdxl.safetensors")
    factors = pipelines.factors_for(tensors, pipelines.modules_of(tensors))
    return Model(folder, root / "sdxl.safetensors", tensors, factors, pipelines.merged(tensors, factors))


def write_adapter(model: Model, folder: Path, spelling: str) -> Path:
    path = folder / "adapter.safetensors"
    if spelling == "diffusers":
        return pipelines.write_dotted(path, model.factors, {part: f"{part}." for part in (UNET, TEXT, TEXT_2)})
    if spelling == "comfy":
        texts = {TEXT: "text_encoders.clip_l.transformer.", TEXT_2: "text_encoders.clip_g.transformer."}
        return pipelines.write_dotted(path, model.factors, {UNET: "diffusion_model.", **texts})
    return pipelines.write_kohya(path, model.factors, sgm=spelling == "kohya, sgm")


def assert_exact(found: Mapping[str, torch.Tensor], model: Model) -> None:
    for name, tensor in found.items():
        if name in model.exact:
            assert half_ulp_excess(tensor, model.exact[name]).max() <= 1 + 1e-6, name
        else:
            assert torch.equal(tensor, model.tensors[name]), name


@pytest.mark.parametrize("spelling", ["kohya", "kohya, sgm", "diffusers", "comfy"])
def test_on_a_pipeline(model: Model, tmp_path: Path, spelling: str) -> None:
    path, out = write_adapter(model, tmp_path, spelling), tmp_path / "out"
    report = adaptertool.merge(model.folder, [path], out)
    assert report.tensors_edited == len(model.factors)
    assert_exact(pipelines.tensors_of(out), model)
    files = [{file.relative_to(root) for file in root.rglob("*.*") if file.is_file()} for root in (out, model.folder)]
    assert files[0] == files[1] | {Path("adaptertool.manifest.json")}
    assert adaptertool.verify(out, model.folder, [path], strict=True).ok
    assert adaptertool.check_files(out).ok


@pytest.mark.parametrize("spelling", ["kohya", "kohya, sgm", "diffusers", "comfy"])
def test_on_a_single_file(model: Model, tmp_path: Path, spelling: str) -> None:
    path, out = write_adapter(model, tmp_path, spelling), tmp_path / "out.safetensors"
    adaptertool.merge(model.file, [path], out)
    found = load_file(out)
    exact = pipelines.single_file({**model.tensors, **model.exact})
    assert found.keys() == exact.keys()
    for name, tensor in found.items():
        assert half_ulp_excess(tensor, exact[name].double()).max() <= 1 + 1e-6, name
    assert adaptertool.verify(out, model.file, [path], strict=True).ok


def test_the_single_file_is_what_diffusers_reads_as_the_pipeline(model: Model) -> None:
    config = dict(pipelines.unet().config)
    made = convert_ldm_unet_checkpoint(load_file(model.file), config)
    ours = {name.removeprefix(f"{UNET}."): own for name, own in model.tensors.items() if name.startswith(f"{UNET}.")}
    assert made.keys() == ours.keys()
    assert all(torch.equal(made[name], own) for name, own in ours.items())


def test_a_fault_in_one_model_of_a_pipeline_is_found(model: Model, tmp_path: Path) -> None:
    path, out = write_adapter(model, tmp_path, "kohya"), tmp_path / "out"
    adaptertool.merge(model.folder, [path], out)
    file = out / pipelines.FILES[TEXT_2]
    tensors = load_file(file)
    tensors["text_projection.weight"] = tensors["text_projection.weight"].T.contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    report = adaptertool.verify(out, model.folder, [path])
    assert [one.name for one in report.tensors if one.status != "exact"] == ["text_encoder_2.text_projection.weight"]


def test_halfway_to_another_pipeline_and_what_differs(model: Model, tmp_path: Path) -> None:
    path, tuned, out = write_adapter(model, tmp_path, "diffusers"), tmp_path / "tuned", tmp_path / "out"
    adaptertool.merge(model.folder, [path], tuned)
    adaptertool.wise(model.folder, tuned, out, 0.5)
    name = "unet.conv_in.weight"
    tuned_weight = pipelines.tensors_of(tuned)[name].double()
    middle = (model.tensors[name].double() + tuned_weight) / 2
    assert half_ulp_excess(pipelines.tensors_of(out)[name], middle).max() <= 1 + 1e-6
    report = adaptertool.diff(model.folder, tuned)
    assert {one.name for one in report.tensors} == set(model.exact)
    assert adaptertool.inspect(path, model.folder, spectra=False).fits


def test_a_text_encoder_of_an_older_transformers_is_the_same(model: Model, tmp_path: Path) -> None:
    """Its tensors have `text_model.` before their names."""
    path, out = write_adapter(model, tmp_path, "diffusers"), tmp_path / "out"
    adaptertool.merge(model.folder, [path], out)
    file = out / pipelines.FILES[TEXT]
    save_file({f"text_model.{k}": v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    assert adaptertool.verify(out, model.folder, [path]).ok
    again = tmp_path / "again"
    adaptertool.merge(out, [path], again)
    assert adaptertool.verify(again, out, [path]).ok


@pytest.mark.parametrize(
    ("key", "match"),
    [
        (
            "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
            r"is for text_encoder_3, which .*pipeline is without; it has",
        ),
        ("lora_unet_down_blocks_9_resnets_0_conv1", r"1 of 1 modules.*\n.*lora_unet_down_blocks_9"),
        ("lycoris_encoder_layers_0_mlp_fc1", r"can mean text_encoder\..*, text_encoder_2\..*; say which with --rename"),
    ],
)
def test_refused_by_name(model: Model, tmp_path: Path, key: str, match: str) -> None:
    tensors = {f"{key}.lora_down.weight": torch.ones(2, 8), f"{key}.lora_up.weight": torch.ones(12, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(MismatchError, match=match):
        adaptertool.merge(model.folder, [tmp_path / "a.safetensors"], tmp_path / "out")


def test_one_model_of_a_pipeline_is_a_base(model: Model, tmp_path: Path) -> None:
    only = {module: own for module, own in model.factors.items() if module.startswith(f"{UNET}.")}
    for sgm in (False, True):
        path, out = pipelines.write_kohya(tmp_path / "a.safetensors", only, sgm=sgm), tmp_path / f"out{sgm}"
        adaptertool.merge(model.folder / "unet", [path], out)
        found = load_file(out / "diffusion_pytorch_model.safetensors")
        assert_exact({f"{UNET}.{name}": own for name, own in found.items()}, model)
    path = write_adapter(model, tmp_path, "kohya")
    with pytest.raises(
        MismatchError, match=r"is for text_encoder, which .*unet is without; .* --leave-out text_encoder does without"
    ):
        adaptertool.merge(model.folder / "unet", [path], tmp_path / "more")
    stale = tmp_path / "outTrue" / "diffusion_pytorch_model.fp16.safetensors"
    stale.write_bytes(b"")  # a variant, which is not read, and not carried over
    report = adaptertool.merge(tmp_path / "outTrue", [tmp_path / "a.safetensors"], tmp_path / "more")
    assert stale.name in " ".join(report.notes) and not (tmp_path / "more" / stale.name).exists()


def test_what_a_base_lacks_is_left_out_by_name(model: Model, tmp_path: Path) -> None:
    path, out = write_adapter(model, tmp_path, "kohya"), tmp_path / "out"
    left = [TEXT, TEXT_2]
    report = adaptertool.merge(model.folder / "unet", [path], out, leave_out=left)
    found = load_file(out / "diffusion_pytorch_model.safetensors")
    assert_exact({f"{UNET}.{name}": own for name, own in found.items()}, model)
    assert sum("is left out" in note for note in report.notes) == len(left)
    assert adaptertool.verify(out, model.folder / "unet", [path], leave_out=left).ok
    for denoiser in (UNET, "transformer"):
        with pytest.raises(UsageError, match="changes nothing but what is to be left out"):
            adaptertool.merge(model.folder / "unet", [path], tmp_path / "more", leave_out=[*left, denoiser])
    with pytest.raises(UsageError, match="'text_encoder_3' leaves nothing out"):
        adaptertool.merge(model.folder, [path], tmp_path / "more", leave_out=["text_encoder_3"])


@pytest.mark.parametrize("kind", ["difference", "lora, 4-D", "difference of another shape"])
def test_a_projection_that_is_stored_transposed(model: Model, tmp_path: Path, kind: str) -> None:
    """OpenCLIP has it so; it is square, so that no shape tells."""
    key, stored = "lora_te2_text_projection", "conditioner.embedders.1.model.text_projection"
    a, b = torch.randn(2, 8), torch.randn(8, 2)
    tensors = {f"{key}.lora_down.weight": a.reshape(2, 8, 1, 1), f"{key}.lora_up.weight": b.reshape(8, 2, 1, 1)}
    if kind != "lora, 4-D":
        tensors = {f"{key}.diff": b @ a if kind == "difference" else torch.randn(8, 6)}
    save_file(tensors, tmp_path / "a.safetensors")
    if kind == "difference of another shape":
        with pytest.raises(MismatchError, match=r"text_projection is F32 8×8.*is this adapter for another model"):
            adaptertool.merge(model.file, [tmp_path / "a.safetensors"], tmp_path / "out.safetensors")
        return
    adaptertool.merge(model.file, [tmp_path / "a.safetensors"], tmp_path / "out.safetensors")
    change = b.double() @ a.double() if kind == "lora, 4-D" else (b @ a).double()
    exact = model.tensors["text_encoder_2.text_projection.weight"].double() + change
    found = load_file(tmp_path / "out.safetensors")[stored].T.contiguous()
    assert half_ulp_excess(found, exact).max() <= 1 + 1e-6
    assert adaptertool.verify(tmp_path / "out.safetensors", model.file, [tmp_path / "a.safetensors"]).ok
