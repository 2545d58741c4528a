"""Checkpoints as the original repositories of image models name them, in small: random numbers, two columns wide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers as convert
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
FILE = "diffusion_pytorch_model.safetensors"
HIDDEN = 3072  # which the converters of Flux and HunyuanVideo count on
BLOCK = {
    "img_attn.qkv": 9, "txt_attn.qkv": 9, "img_attn.proj": 3, "txt_attn.proj": 3, "img_mlp.0": 12, "img_mlp.2": 3,
    "txt_mlp.0": 12, "txt_mlp.2": 3, "img_mod.lin": 18, "txt_mod.lin": 18,
}  # fmt: skip
OUTSIDE = ("img_in", "txt_in", "time_in.in_layer", "time_in.out_layer", "vector_in.in_layer", "vector_in.out_layer",
           "guidance_in.in_layer", "guidance_in.out_layer", "final_layer.linear")  # fmt: skip


def flux() -> dict[str, torch.Tensor]:
    """A checkpoint as Black Forest Labs name it, of two blocks and one."""
    rows = dict.fromkeys(OUTSIDE, 4) | {"final_layer.adaLN_modulation.1": 6}
    for layer in range(2):
        rows |= {f"double_blocks.{layer}.{name}": count for name, count in BLOCK.items()}
    rows |= {
        f"single_blocks.0.{name}": n for name, n in (("linear1", 7 * HIDDEN), ("linear2", 3), ("modulation.lin", 9))
    }
    made = {f"{name}.weight": torch.randn(count, 2) for name, count in rows.items()}
    made |= {f"{name}.bias": torch.randn(count) for name, count in rows.items()}
    norms = [f"double_blocks.{layer}.{side}_attn.norm" for layer in range(2) for side in ("img", "txt")]
    for norm in (*norms, "single_blocks.0.norm"):
        made |= {f"{norm}.{kind}_norm.scale": torch.randn(4) for kind in ("query", "key")}
    return made


def sd3() -> dict[str, torch.Tensor]:
    rows = {"x_embedder.proj": 4, "context_embedder": 4, "final_layer.linear": 4, "final_layer.adaLN_modulation.1": 6}
    rows |= {f"{name}.mlp.{number}": 4 for name in ("t_embedder", "y_embedder") for number in (0, 2)}
    for layer in range(3):
        for side in ("x_block", "context_block"):
            last = layer == 2 and side == "context_block"
            rows |= {f"joint_blocks.{layer}.{side}.attn.qkv": 9}
            rows |= {f"joint_blocks.{layer}.{side}.adaLN_modulation.1": 6 if last else 18}
            if not last:
                rows |= {f"joint_blocks.{layer}.{side}.{name}": 6 for name in ("attn.proj", "mlp.fc1", "mlp.fc2")}
    made = {f"{name}.weight": torch.randn(count, 2) for name, count in rows.items()}
    return made | {f"{name}.bias": torch.randn(count) for name, count in rows.items()} | {"pos_embed": torch.ones(4, 2)}


def write_bases(folder: Path) -> tuple[Tensors, Tensors, Path, Path]:
    """The same model as a single file of the original's, and as a folder of diffusers'."""
    torch.manual_seed(1)
    original = flux()
    ours = {name: tensor.contiguous() for name, tensor in convert(dict(original)).items()}
    (folder / "ours").mkdir()
    save_file(ours, folder / "ours" / FILE, metadata={"format": "pt"})
    (folder / "ours" / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    save_file({f"model.diffusion_model.{k}": v for k, v in original.items()}, folder / "original.safetensors")
    return original, ours, folder / "original.safetensors", folder / "ours"


def write_factors(path: Path, weights: Mapping[str, torch.Tensor], kind: str = "") -> Tensors:
    """An adapter for modules as they are named, flat; returns the change of each weight in float64."""
    tensors, changes = {}, {}
    for module, weight in weights.items():
        flat = f"lora_unet_{module.replace('.', '_')}"
        if kind == "lokr":  # rows and columns
            tensors |= {f"{flat}.lokr_w1": (rows := torch.randn(len(weight), 1)), f"{flat}.lokr_w2": torch.randn(1, 2)}
            changes[f"{module}.weight"] = torch.kron(rows.double(), tensors[f"{flat}.lokr_w2"].double())
            continue
        a, b = torch.randn(1, weight.shape[1]), torch.randn(len(weight), 1)
        tensors |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b}
        changes[f"{module}.weight"] = b.double() @ a.double()
        if kind == "dora":
            norms = (weight.double() + changes[f"{module}.weight"]).norm(dim=1, keepdim=True)
            scale = torch.rand(len(weight), 1) + 0.5
            tensors[f"{flat}.dora_scale"] = scale
            direction = (weight.double() + changes[f"{module}.weight"]) / norms
            changes[f"{module}.weight"] = scale.double() * direction - weight.double()
    save_file(tensors, path)
    return changes
