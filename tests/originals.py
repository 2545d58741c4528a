"""Checkpoints as the original repositories of image models name them, in small: random numbers, two columns wide."""

from __future__ import annotations

import torch

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
