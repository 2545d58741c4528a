"""A tiny Stable Diffusion XL, as diffusers saves it and as a single file of the original repository; adapters for it,
and what they make of it in float64."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Tensors = dict[str, torch.Tensor]
RANK, ALPHA, LAYERS = 2, 1.0, 2
UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"
FILES = {
    UNET: "unet/diffusion_pytorch_model.safetensors",
    TEXT: "text_encoder/model.safetensors",
    TEXT_2: "text_encoder_2/model.safetensors",
}
_IN_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTSIDE = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2",
}  # fmt: skip
_OPEN = {
    "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "layer_norm1": "ln_1", "layer_norm2": "ln_2",
}  # fmt: skip


def unet(**more: object) -> UNet2DConditionModel:
    settings = {
        "block_out_channels": (4, 8), "layers_per_block": LAYERS, "sample_size": 8, "cross_attention_dim": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 2, "norm_num_groups": 2,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "addition_embed_type": "text_time",
        "addition_time_embed_dim": 2, "projection_class_embeddings_input_dim": 20, "use_linear_projection": True,
    }  # fmt: skip
    return UNet2DConditionModel(**(settings | more))


def write_pipeline(folder: Path) -> Path:
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=[4], norm_num_groups=2, down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"], latent_channels=4,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(config), text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=None, tokenizer_2=None, unet=unet(), scheduler=DDIMScheduler(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def tensors_of(folder: Path) -> Tensors:
    """The tensors of a pipeline, with the folder of each before its name."""
    return {f"{part}.{key}": own for part, file in FILES.items() for key, own in load_file(folder / file).items()}


def sgm_name(name: str) -> str:
    """The name that a tensor of the U-Net has in the original repository."""
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        side, level, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        block = 1 + level * (LAYERS + 1) + number if side == "down" else level * (LAYERS + 1) + number
        path = f"{'input' if side == 'down' else 'output'}_blocks.{block}.{int(kind == 'attentions')}"
        return f"{path}.{_inner(rest) if kind == 'resnets' else rest}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(int(match[1]) + 1) * (LAYERS + 1)}.0.op.{match[2]}"
    if match := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", name):  # the first of both has attention
        return f"output_blocks.{int(match[1]) * (LAYERS + 1) + LAYERS}.2.conv.{match[2]}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        at = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{at}.{_inner(match[3]) if at != 1 else match[3]}"
    path, _, kind = name.rpartition(".")
    return f"{_OUTSIDE[path]}.{kind}"


def _inner(rest: str) -> str:
    path, _, kind = rest.rpartition(".")
    return f"{_IN_RESNET[path]}.{kind}"


def open_clip(text: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors of a text encoder of transformers', named as OpenCLIP does: q, k and v in one, the projection
    transposed."""
    made: Tensors = {}
    for name, tensor in text.items():
        inner = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)
        if name == "text_projection.weight":
            made["text_projection"] = tensor.T.contiguous()
        elif name.startswith("text_model.embeddings.token"):
            made["token_embedding.weight"] = tensor
        elif name.startswith("text_model.embeddings.position"):
            made["positional_embedding"] = tensor
        elif inner is None:
            made[name.replace("text_model.final_layer_norm", "ln_final")] = tensor
        elif (path := f"transformer.resblocks.{inner[1]}") and inner[2] in _OPEN:
            made[f"{path}.{_OPEN[inner[2]]}.{inner[3]}"] = tensor
        elif inner[2] == "self_attn.q_proj":
            parts = [text[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            made[f"{path}.attn.in_proj_{inner[3]}"] = torch.cat(parts)
    return made


def single_file(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """What `tensors_of` a pipeline gives, as the original repository stores it."""
    own = {
        part: {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")} for part in FILES
    }
    text = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in own[TEXT].items()}
    return {
        **{f"model.diffusion_model.{sgm_name(k)}": v for k, v in own[UNET].items()},
        **{f"conditioner.embedders.0.transformer.{k}": v for k, v in text.items()},
        **{f"conditioner.embedders.1.model.{k}": v for k, v in open_clip(own[TEXT_2]).items()},
    }


def modules_of(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The modules that trainers change: linear layers and convolutions."""
    found = [name.removesuffix(".weight") for name, tensor in tensors.items() if tensor.ndim > 1]
    return [name for name in found if ".embeddings." not in name]


def factors_for(
    tensors: Mapping[str, torch.Tensor], modules: list[str]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(A, B) for each module."""
    made = {}
    for module in modules:
        out, inner, *kernel = tensors[f"{module}.weight"].shape
        made[module] = torch.randn(RANK, inner, *kernel), torch.randn(out, RANK, *(1 for _ in kernel))
    return made


def merged(tensors: Mapping[str, torch.Tensor], factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Tensors:
    """The merge in float64 of all that is changed."""
    made = {}
    for module, (a, b) in factors.items():
        weight = tensors[f"{module}.weight"].double()
        change = (b.double().flatten(1) @ a.double().flatten(1)).reshape(weight.shape)
        made[f"{module}.weight"] = weight + ALPHA / RANK * change
    return made


def kohya_name(module: str, *, sgm: bool) -> str:
    part, _, path = module.partition(".")
    prefix = {UNET: "lora_unet", TEXT: "lora_te1", TEXT_2: "lora_te2"}[part]
    if part == UNET and sgm:
        path = sgm_name(f"{path}.weight").removesuffix(".weight")
    if part == TEXT and not path.startswith("text_model."):
        path = f"text_model.{path}"
    return f"{prefix}_{path.replace('.', '_')}"


def write_kohya(path: Path, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, sgm: bool) -> Path:
    tensors = {}
    for module, (a, b) in factors.items():
        name = kohya_name(module, sgm=sgm)
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(ALPHA)}
    save_file(tensors, path)
    return path


def write_dotted(
    path: Path, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], prefixes: Mapping[str, str]
) -> Path:
    """A file with the names of modules as they are, behind other prefixes; scaled by A, since it has no alpha."""
    tensors = {}
    for module, (a, b) in factors.items():
        part, _, rest = module.partition(".")
        name = prefixes[part] + rest
        tensors |= {f"{name}.lora_A.weight": a * (ALPHA / RANK), f"{name}.lora_B.weight": b}
    save_file(tensors, path)
    return path
