"""Files of diffusers' against what diffusers itself makes of them: saved by it, loaded by it, fused in float64."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, same_bits, write_checkpoint
from oracle import half_ulp_excess
from safetensors.torch import load_file, save_file
from torch import nn

import adaptertool
from adaptertool.errors import MismatchError

pytest.importorskip("diffusers")
from diffusers import FluxPipeline, FluxTransformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

FILE = "pytorch_lora_weights.safetensors"
LAYERS = ["to_q", "to_out.0", "ff.net.2", "conv1", "proj_in"]


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=6,
        attention_head_dim=2,
        norm_num_groups=2,
    )


@pytest.fixture(scope="module")
def flux() -> FluxTransformer2DModel:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "in_channels": 4,
        "attention_head_dim": 8,
        "joint_attention_dim": 6,
        "axes_dims_rope": [2, 2, 4],
    }
    return FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, num_attention_heads=1, pooled_projection_dim=5, **sizes
    )


def trained(model: nn.Module, **fields: Any) -> nn.Module:
    """The model with an adapter of random factors."""
    model = copy.deepcopy(model)
    model.add_adapter(LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": LAYERS} | fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) / 3 + ("magnitude" in name))
    return model


def fused(model: nn.Module, load_adapter: Callable[[nn.Module], None]) -> dict[str, torch.Tensor]:
    """What diffusers makes of the weights, in float64."""
    model = copy.deepcopy(model).double()
    load_adapter(model)
    for parameter in model.parameters():  # it gives factors the dtype that they are stored in
        parameter.data = parameter.data.double()
    model.fuse_lora()
    model.unload_lora()
    return dict(model.state_dict())


def require_same(base: Path, adapter: Path, exact: Mapping[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """Merge, and hold it against these tensors."""
    out = adapter.parent / f"{adapter.stem} out"
    adaptertool.merge(base, [adapter], out)
    before, after, changed = load(base), load(out), 0
    assert exact.keys() == after.keys()
    for key, tensor in after.items():
        if exact[key].equal(before[key].double()):
            assert same_bits(tensor, before[key]), key
        else:
            assert not tensor.equal(before[key]), key
            assert half_ulp_excess(tensor, exact[key]).max() <= 1 + tolerance, key
            changed += 1
    assert changed


def base_of(model: nn.Module, path: Path) -> Path:
    return write_checkpoint(path, {name: tensor.detach() for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize(
    ("fields", "prefix"),
    [
        ({}, None),
        ({"use_rslora": True}, "unet"),
        ({"rank_pattern": {"to_q": 2, "conv1": 4}, "alpha_pattern": {"ff.net.2": 7}}, "unet"),
        ({"use_dora": True}, None),
        ({"lora_bias": True, "target_modules": ["conv1", "proj_in"]}, "unet"),
    ],
    ids=["plain", "rslora", "patterns", "dora", "bias"],
)
def test_the_config_in_the_metadata(
    tmp_path: Path, unet: UNet2DConditionModel, fields: dict[str, Any], prefix: str | None
) -> None:
    base, model = base_of(unet, tmp_path / "base"), trained(unet, **fields)
    if prefix is None:
        model.save_lora_adapter(tmp_path / "lora")
    else:
        StableDiffusionPipeline.save_lora_weights(
            tmp_path / "lora",
            unet_lora_layers=get_peft_model_state_dict(model),
            unet_lora_adapter_metadata=model.peft_config["default"].to_dict(),
        )
    exact = fused(unet, lambda own: own.load_lora_adapter(str(tmp_path / "lora"), weight_name=FILE, prefix=prefix))
    require_same(base, tmp_path / "lora", exact, 1e-3 if fields.get("use_dora") else 1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_without_metadata_every_scale_is_1(tmp_path: Path, unet: UNet2DConditionModel, dora: bool) -> None:
    base, model = base_of(unet, tmp_path / "base"), trained(unet, use_dora=dora, rank_pattern={"to_q": 2})
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=get_peft_model_state_dict(model))
    exact = fused(unet, lambda own: own.load_lora_adapter(str(tmp_path / "lora"), weight_name=FILE, prefix="unet"))
    require_same(base, tmp_path / "lora", exact, 1e-3 if dora else 1e-5)


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_attention_processors_of_2023(tmp_path: Path, unet: UNet2DConditionModel, prefix: str) -> None:
    base, path, tensors = base_of(unet, tmp_path / "base"), tmp_path / "lora.safetensors", {}
    for name, module in unet.named_modules():
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")):
            attention, layer = name.removesuffix(".0").rsplit(".", 1)
            key = f"{prefix}{attention}.processor.{layer}_lora"
            tensors[f"{key}.down.weight"] = torch.randn(2, module.in_features)
            tensors[f"{key}.up.weight"] = torch.randn(module.out_features, 2)
    save_file(tensors, path)
    own = {key if prefix else f"unet.{key}": tensor for key, tensor in tensors.items()}
    require_same(base, path, fused(unet, lambda model: model.load_lora_adapter(own, prefix="unet")))


def test_alphas_of_a_transformer(tmp_path: Path, flux: FluxTransformer2DModel) -> None:
    """diffusers gives modules without alpha those of others: here all have one. It divides in float32, here by 4."""
    base, path = base_of(flux, tmp_path / "base"), tmp_path / "lora.safetensors"
    layers = get_peft_model_state_dict(trained(flux, r=4, target_modules=["to_q", "proj_mlp", "add_k_proj"]))
    tensors = {f"transformer.{key}": tensor for key, tensor in layers.items()}
    for number, key in enumerate(key for key in layers if key.endswith(".lora_A.weight")):
        tensors[f"transformer.{key.removesuffix('.lora_A.weight')}.alpha"] = torch.tensor(1.0 + number / 2)
    save_file(tensors, path)
    own, alphas = FluxPipeline.lora_state_dict(str(path), return_alphas=True)
    exact = fused(flux, lambda model: model.load_lora_adapter(own, network_alphas=alphas, prefix="transformer"))
    require_same(base, path, exact)


def test_a_conv_magnitude_is_of_rows_even_where_columns_are_as_many(tmp_path: Path, unet: UNet2DConditionModel) -> None:
    """(1, n, 1, 1) means rows under PEFT's name for it, and columns under kohya's."""
    base, model = base_of(unet, tmp_path / "base"), trained(unet, use_dora=True, target_modules=["proj_in"])
    model.save_lora_adapter(tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / FILE)
    (name, *_) = (key.removesuffix(".lora_magnitude_vector") for key in tensors if "magnitude" in key)
    assert tensors[f"{name}.lora_magnitude_vector"].shape == (1, 8, 1, 1)
    assert tensors[f"{name}.lora_A.weight"].shape[1] == 8
    exact = fused(unet, lambda own: own.load_lora_adapter(str(tmp_path / "lora"), weight_name=FILE, prefix=None))
    require_same(base, tmp_path / "lora", exact, 1e-3)


def test_a_rank_that_is_not_that_of_the_metadata_is_refused(tmp_path: Path, unet: UNet2DConditionModel) -> None:
    base, model = base_of(unet, tmp_path / "base"), trained(unet)
    model.save_lora_adapter(tmp_path / "lora")
    told = json.dumps({"r": 4, "lora_alpha": 4})
    save_file(load_file(tmp_path / "lora" / FILE), tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": told})
    with pytest.raises(MismatchError, match=r"gives the module rank 4"):
        adaptertool.merge(base, [tmp_path / "a.safetensors"], tmp_path / "out")
