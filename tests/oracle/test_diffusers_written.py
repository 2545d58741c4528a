"""What is written as diffusers has it: diffusers loads it, and its layers then compute what was trained."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import adaptertool
from adaptertool.errors import UnsupportedError

pytest.importorskip("diffusers")
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.lora_base import _load_lora_into_text_encoder

FILE = "pytorch_lora_weights.safetensors"
TARGETS = ["to_q", "to_k", "to_out.0", "conv1", "proj_in"]


def unet() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def clip() -> Any:
    torch.manual_seed(1)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=20, max_position_embeddings=8, **sizes))


def trained(model: nn.Module, folder: Path, **config: Any) -> dict[str, torch.Tensor]:
    """An adapter of random factors, saved by PEFT; returns the weights that it makes, in float64."""
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(**config))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(folder)
    return tuned.double().merge_and_unload().state_dict()


def loaded(model: Any, path: Path, *, prefix: str = "unet") -> dict[str, torch.Tensor]:
    """The weights after diffusers has loaded the file, in float64."""
    model = copy.deepcopy(model)
    state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
        path, weight_name=FILE if path.is_dir() else None, local_files_only=True, return_lora_metadata=True
    )
    assert not alphas
    if prefix == "unet":
        model.load_lora_adapter(state, prefix=prefix, metadata=metadata, low_cpu_mem_usage=False)
    else:
        _load_lora_into_text_encoder(state, None, model, prefix=prefix, text_encoder_name=prefix, metadata=metadata)
    model = model.double()
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    assert layers
    for layer in layers.values():
        layer.merge()
    return {key.replace(".base_layer", ""): tensor for key, tensor in model.state_dict().items() if ".lora_" not in key}


def told(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("lora_adapter_metadata")
    return {} if text is None else json.loads(text)


CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "baked": ({"r": 4, "lora_alpha": 2}, False),
    "any scale": ({"r": 4, "lora_alpha": 3}, True),
    "own ranks": ({"r": 4, "lora_alpha": 4, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 2}}, True),
    "own alphas": ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": 5, "conv1": 7}}, True),
    "rslora": ({"r": 3, "lora_alpha": 4, "use_rslora": True}, True),
    "dora": ({"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": ["to_q", "conv1"]}, True),
    "dora, baked": ({"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["to_q"]}, False),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_unet(tmp_path: Path, case: str) -> None:
    config, described = CASES[case]
    model = unet()
    exact = trained(model, tmp_path / "a", **{"target_modules": TARGETS} | config)
    report = adaptertool.convert(tmp_path / "a", tmp_path / "out", to="diffusers")
    assert report.rounded == 0
    assert bool(told(tmp_path / "out" / FILE)) == described
    found = loaded(model, tmp_path / "out")
    assert found.keys() == exact.keys()
    assert max(float((found[name] - tensor).abs().max()) for name, tensor in exact.items()) < 1e-12
    if described:
        before, after = load(tmp_path / "a"), load(tmp_path / "out")
        assert all(tensor.equal(after[key.replace("base_model.model.", "unet.")]) for key, tensor in before.items())


@pytest.mark.parametrize("alpha", [2, 3])
def test_a_text_encoder_beside_it(tmp_path: Path, alpha: int) -> None:
    """One file for both, with metadata for both or none."""
    model, text = unet(), clip()
    exact = trained(text, tmp_path / "t", r=2, lora_alpha=alpha, target_modules=["q_proj", "fc1"])
    trained(model, tmp_path / "u", r=4, lora_alpha=4, target_modules=["to_q"])
    for name, prefix in (("t", "text_encoder."), ("u", "unet.")):
        adaptertool.convert(tmp_path / name, tmp_path / f"{name}.safetensors", to="diffusers", prefix=prefix)
    found = loaded(text, tmp_path / "t.safetensors", prefix="text_encoder")
    assert max(float((found[name] - tensor).abs().max()) for name, tensor in exact.items()) < 1e-12


def pipeline(folder: Path, **parts: Any) -> Path:
    """A folder of a pipeline with these models, of Stable Diffusion 1."""
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1"}
    for name, model in parts.items():
        model.save_pretrained(folder / name)
        index[name] = ["diffusers" if name == "unet" else "transformers", type(model).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("alpha", [2, 3])
def test_a_file_of_kohyas_for_a_unet_and_a_text_encoder(tmp_path: Path, alpha: int) -> None:
    """Names that only the base tells; metadata for both parts, or none."""
    model, text = unet(), clip()
    exact = trained(model, tmp_path / "u", r=4, lora_alpha=4, target_modules=TARGETS)
    exact_text = trained(text, tmp_path / "t", r=2, lora_alpha=alpha, target_modules=["q_proj", "fc1"])
    files = []
    for name, prefix in (("t", "lora_te_text_model_"), ("u", "lora_unet_")):
        adaptertool.convert(tmp_path / name, tmp_path / f"{name}.safetensors", to="kohya", prefix=prefix)
        files.append(load(tmp_path / f"{name}.safetensors"))
    save_file(files[0] | files[1], tmp_path / "both.safetensors")
    base = pipeline(tmp_path / "base", unet=model, text_encoder=text)
    report = adaptertool.convert(tmp_path / "both.safetensors", tmp_path / "out", to="diffusers", base=base)
    assert report.rounded == 0
    assert {key.partition(".")[0] for key in told(tmp_path / "out" / FILE)} == (
        {"unet", "text_encoder"} if alpha == 3 else set()
    )
    for own, found in ((exact, loaded(model, tmp_path / "out")), (exact_text, loaded_text(text, tmp_path / "out"))):
        assert max(float((found[name] - tensor).abs().max()) for name, tensor in own.items()) < 1e-12
    adaptertool.convert(tmp_path / "both.safetensors", tmp_path / "peft", to="peft", base=base, parts=["unet"])
    before, after = load(tmp_path / "u"), load(tmp_path / "peft")
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[key]) for key, tensor in before.items())
    with pytest.raises(UnsupportedError, match=r"of several parts of a pipeline.*--part"):
        adaptertool.convert(tmp_path / "both.safetensors", tmp_path / "no", to="peft", base=base)


def loaded_text(model: Any, path: Path) -> dict[str, torch.Tensor]:
    return loaded(model, path, prefix="text_encoder")
