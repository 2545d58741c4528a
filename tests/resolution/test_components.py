"""Adapters on the original's checkpoint and on diffusers' of the same model make the same change: as diffusers' own
converters turn one into the other. Fused and split projections, and halves that are swapped."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import torch
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers as convert
from oracle import half_ulp_excess
from originals import FILE, write_bases, write_factors
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.architectures.diffusion import components_of
from adaptertool.errors import MismatchError, UnsupportedError
from adaptertool.resolution.components import ComponentNames

# The blocks of one of each kind, and what lies outside
NAMES = ("img_in", "final_layer.linear", "final_layer.adaLN_modulation.1", "double_blocks.1.img_attn.qkv",
         "double_blocks.0.txt_attn.qkv", "double_blocks.0.img_mlp.0", "single_blocks.0.linear1",
         "single_blocks.0.linear2")  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
@pytest.mark.parametrize("spelled", ["original", "ours"])
def test_one_change_of_both(tmp_path: Path, spelled: str, kind: str) -> None:
    original, ours, file, folder = write_bases(tmp_path)
    path = tmp_path / "a.safetensors"
    if spelled == "original":
        changes = write_factors(path, {name: original[f"{name}.weight"] for name in NAMES}, kind)
        exact = {name: own.double() + changes.get(name, 0) for name, own in original.items()}
        converted = convert(dict(exact))
    else:
        names = [name.removesuffix(".weight") for name, own in ours.items() if own.ndim == 2]
        changes = write_factors(path, {name: ours[f"{name}.weight"] for name in names}, kind)
        converted = {name: own.double() + changes.get(name, 0) for name, own in ours.items()}
        exact = {}
    adaptertool.merge(folder, [path], tmp_path / "out")
    for name, found in load_file(tmp_path / "out" / FILE).items():
        assert half_ulp_excess(found, converted[name]).max() <= 1 + 1e-6, name
    adaptertool.merge(file, [path], tmp_path / "out.safetensors")
    merged = {k.removeprefix("model.diffusion_model."): v for k, v in load_file(tmp_path / "out.safetensors").items()}
    for name, found in convert(dict(merged)).items():
        assert half_ulp_excess(found, converted[name]).max() <= 1 + 1e-6, name
    assert all(half_ulp_excess(merged[name], own).max() <= 1 + 1e-6 for name, own in exact.items())
    assert adaptertool.verify(tmp_path / "out.safetensors", file, [path], strict=True).ok
    assert adaptertool.verify(tmp_path / "out", folder, [path], strict=True).ok


@pytest.mark.parametrize(
    ("tensor", "order"),
    [("final_layer.adaLN_modulation.1.weight", (1, 0)), ("double_blocks.1.img_attn.qkv.weight", (1, 0, 2))],
)
def test_rows_in_another_order_are_not_right(tmp_path: Path, tensor: str, order: tuple[int, ...]) -> None:
    """What a tool makes that does not swap the halves, or takes q for k."""
    _, ours, file, _ = write_bases(tmp_path)
    path, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    names = ["norm_out.linear", *(f"transformer_blocks.1.attn.to_{part}" for part in "qkv")]
    write_factors(path, {name: ours[f"{name}.weight"] for name in names})
    adaptertool.merge(file, [path], out)
    assert adaptertool.verify(out, file, [path]).ok
    before, after = load_file(file), load_file(out)
    key = f"model.diffusion_model.{tensor}"
    changes = (after[key] - before[key]).chunk(len(order))
    after[key] = before[key] + torch.cat([changes[part] for part in order])
    save_file(after, out)
    report = adaptertool.verify(out, file, [path])
    assert [one.name for one in report.tensors if one.status == "wrong"] == [key]


def test_factors_that_cannot_be_cut_are_refused(tmp_path: Path) -> None:
    _, _, _, folder = write_bases(tmp_path)
    key = "lora_unet_final_layer_adaLN_modulation_1"
    tensors = {f"{key}.oft_blocks": torch.ones(3, 2, 2), f"{key}.alpha": torch.tensor(0.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedError, match=r"norm_out\.linear\.weight, which holds .* with its halves swapped"):
        adaptertool.merge(folder, [tmp_path / "a.safetensors"], tmp_path / "out")


def test_a_part_of_another_size_is_refused(tmp_path: Path) -> None:
    _, _, file, _ = write_bases(tmp_path)
    write_factors(tmp_path / "a.safetensors", {"single_transformer_blocks.0.proj_mlp": torch.ones(6, 2)})
    with pytest.raises(MismatchError, match=r"is parts 4 to 7 of 7 of .*but its factors are for 6 rows"):
        adaptertool.merge(file, [tmp_path / "a.safetensors"], tmp_path / "out")


def test_flat_names_that_two_tensors_would_have_are_refused() -> None:
    names = ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "mid.to_out.0.weight", "mid.to_out_0.weight"]
    found = ComponentNames(names, components_of(names, None))
    with pytest.raises(MismatchError, match=r"can mean mid\.to_out\.0\.weight, mid\.to_out_0\.weight; say which"):
        found.find("lora_unet_mid_to_out_0.weight")


def test_t5_is_the_second_text_encoder_of_flux_and_the_third_of_sd3() -> None:
    config = {"transformer": {}, "text_encoder": {}, "text_encoder_2": {"model_type": "t5"}}
    names = [f"{folder}.encoder.block.0.x.weight" for folder in config]
    of_flux = ComponentNames(names, components_of(names, config, tuple(config)))
    for key in ("lora_te2_encoder_block_0_x.weight", "lora_te3_encoder_block_0_x.weight"):
        assert of_flux.find(key) == of_flux.find("text_encoder_2.encoder.block.0.x.weight")
    of_sd3 = ComponentNames(
        [*names, "text_encoder_3.encoder.block.0.x.weight"],
        components_of(names, config | {"text_encoder_3": {}}, (*config, "text_encoder_3")),
    )
    assert [piece.disk for piece in of_sd3.find("lora_te3_encoder_block_0_x.weight") or ()] == [
        "text_encoder_3.encoder.block.0.x.weight"
    ]


def test_text_encoders_as_comfy_names_them() -> None:
    """A language model, whose layers have a longer name since transformers 5."""
    config = {"transformer": {}, "text_encoder": {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}}
    own = "text_encoder.model.language_model.layers.0.self_attn.q_proj.weight"
    found = ComponentNames([own, "transformer.x.weight"], components_of([own], config, tuple(config)))
    for name in (own, "text_encoders.qwen25_7b.transformer.model.layers.0.self_attn.q_proj.weight",
                 "text_encoder.model.layers.0.self_attn.q_proj.weight",
                 "lora_te1_model_language_model_layers_0_self_attn_q_proj.weight"):  # fmt: skip
        assert [piece.disk for piece in found.find(name) or ()] == [own], name


def test_two_transformers_of_one_pipeline_are_told_apart() -> None:
    config = {"transformer": {}, "transformer_2": {}}
    names = [f"{folder}.blocks.0.attn1.to_q.weight" for folder in config]
    found = ComponentNames(names, components_of(names, config, tuple(config)))
    assert [piece.disk for piece in found.find(names[1]) or ()] == [names[1]]
    with pytest.raises(MismatchError, match=r"can mean transformer\.blocks.*, transformer_2\.blocks"):
        found.find("lora_unet_blocks_0_attn1_to_q.weight")


def test_one_text_encoder_is_not_taken_for_two() -> None:
    names = [f"encoder.layers.0.self_attn.{part}_proj.weight" for part in "qk"]
    found = ComponentNames(names, components_of(names, {"architectures": ["CLIPTextModel"]}))
    one, other = (f"lora_te{number}_{name.removesuffix('.weight').replace('.', '_')}.weight"
                  for number, name in zip((1, 2), names, strict=True))  # fmt: skip
    for wanted in (one, other):
        assert found.find_all([(wanted, False)])[0] != [None]
    with pytest.raises(MismatchError, match=r"are for text_encoder and text_encoder_2, and the base has one of these"):
        found.find_all([(one, False), (other, False)])
