"""Families of image and video models whose tables have no test of their own: the same change of the original's
checkpoint and of diffusers', as diffusers' converters make one of the other; and what diffusers fuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

import diffusers
import torch
from diffusers.loaders import single_file_utils as converters
from oracle import half_ulp_excess
from originals import FILE, HIDDEN, write_factors
from safetensors.torch import load_file, save_file

import adaptertool

Tensors = dict[str, torch.Tensor]
SIZES = {"linear1": 7 * HIDDEN}  # rows that converters count on
ROWS = 12


class Made(Tensors):
    """A checkpoint that has whatever is asked for, and keeps it."""

    def __init__(self, names: list[str]) -> None:
        super().__init__({name: torch.zeros(1) for name in names})
        self.made: Tensors = {}

    def pop(self, name: str, *_: Any) -> Any:
        if name in self:
            super().pop(name)
        rows = next((size for part, size in SIZES.items() if part in name), ROWS)
        is_vector = name.endswith((".bias", ".scale", "norm.weight", "_embedding"))
        return self.made.setdefault(name, torch.randn(rows) if is_vector else torch.randn(rows, 2))


WAN = [
    "blocks.0.self_attn.q.weight",
    "blocks.1.cross_attn.o.weight",
    "blocks.0.ffn.0.weight",
    "head.head.weight",
    "blocks.0.ffn.2.weight",
    "text_embedding.0.weight",
    "time_embedding.2.weight",
    "time_projection.1.weight",
]
VACE = [*WAN, "vace_blocks.0.self_attn.q.weight", "vace_blocks.1.ffn.2.weight", "vace_blocks.0.before_proj.weight",
        "vace_blocks.1.after_proj.weight", "vace_patch_embedding.weight"]  # fmt: skip
LTX_2 = ["transformer_blocks.0.attn1.to_q.weight", "transformer_blocks.0.audio_attn1.to_k.weight",
         "transformer_blocks.1.audio_to_video_attn.to_out.0.weight", "patchify_proj.weight",
         "audio_patchify_proj.weight", "adaln_single.linear.weight", "audio_adaln_single.linear.weight",
         "av_ca_a2v_gate_adaln_single.linear.weight", "transformer_blocks.0.ff.net.0.proj.weight"]  # fmt: skip
COSMOS = ["blocks.0.self_attn.q_proj.weight", "blocks.1.cross_attn.output_proj.weight", "blocks.0.mlp.layer1.weight",
          "blocks.0.adaln_modulation_self_attn.1.weight", "x_embedder.proj.1.weight", "t_embedder.1.linear_1.weight",
          "final_layer.linear.weight", "final_layer.adaln_modulation.2.weight"]  # fmt: skip
KREA = ["blocks.0.attn.wq.weight", "blocks.1.attn.gate.weight", "blocks.0.mlp.down.weight", "first.weight",
        "txtfusion.layerwise_blocks.1.attn.wo.weight", "txtfusion.refiner_blocks.0.mlp.up.weight", "tproj.1.weight",
        "tmlp.0.weight", "txtmlp.3.weight", "last.linear.weight", "txtfusion.projector.weight"]  # fmt: skip
# class -> diffusers' converter, and names of the original's; of those that ask for tensors, what they look for
FAMILIES: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "ChromaTransformer2DModel": (
        converters.convert_chroma_transformer_checkpoint_to_diffusers,
        [f"{kind}.0." for kind in ("double_blocks", "single_blocks", "distilled_guidance_layer.layers")],
    ),
    "AuraFlowTransformer2DModel": (
        converters.convert_auraflow_transformer_checkpoint_to_diffusers,
        ["double_layers.0.", "single_layers.0."],
    ),
    "SanaTransformer2DModel": (converters.convert_sana_transformer_to_diffusers, ["blocks.0.", "blocks.1."]),
    "MochiTransformer3DModel": (converters.convert_mochi_transformer_checkpoint_to_diffusers, []),
    "WanVACETransformer3DModel": (converters.convert_wan_transformer_to_diffusers, VACE),
    "SkyReelsV2Transformer3DModel": (converters.convert_wan_transformer_to_diffusers, WAN),
    "LTX2VideoTransformer3DModel": (converters.convert_ltx2_transformer_to_diffusers, LTX_2),
    "CosmosTransformer3DModel": (converters.convert_cosmos_transformer_checkpoint_to_diffusers, COSMOS),
    "Krea2Transformer2DModel": (converters.convert_krea2_transformer_checkpoint_to_diffusers, KREA),
}


def both(name: str) -> tuple[Tensors, Tensors]:
    """A checkpoint of the original's, and what diffusers makes of it."""
    convert, names = FAMILIES[name]
    if any(one.endswith(".weight") for one in names):
        original = {one: torch.randn(ROWS, 2) for one in names}
        return original, convert(dict(original))
    checkpoint = Made(names)
    ours = {key: own.contiguous() for key, own in convert(checkpoint).items() if own is not None}
    return checkpoint.made, ours


def layers(tensors: Tensors) -> Iterator[str]:
    """Of each kind of layer the first, and the last."""
    kinds: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and name.endswith(".weight"):
            kinds.setdefault("".join(part for part in name if not part.isdecimal()), []).append(name)
    for some in kinds.values():
        yield from {name.removesuffix(".weight"): None for name in (some[0], some[-1])}


@pytest.mark.parametrize("spelled", ["original", "ours"])
@pytest.mark.parametrize("name", FAMILIES)
def test_one_change_of_both(tmp_path: Path, name: str, spelled: str) -> None:
    torch.manual_seed(1)
    original, ours = both(name)
    (tmp_path / "ours").mkdir()
    save_file(ours, tmp_path / "ours" / FILE)
    (tmp_path / "ours" / "config.json").write_text(json.dumps({"_class_name": name}))
    front = "net." if name == "CosmosTransformer3DModel" else "model.diffusion_model."
    save_file({front + key: one for key, one in original.items()}, tmp_path / "o.safetensors")
    own, path = original if spelled == "original" else ours, tmp_path / "a.safetensors"
    changes = write_factors(path, {layer: own[f"{layer}.weight"] for layer in layers(own)})
    assert len(changes) >= len(COSMOS)
    exact = {key: tensor.double() + changes.get(key, 0) for key, tensor in own.items()}
    for base, out in (
        (tmp_path / "ours", tmp_path / "out"),
        (tmp_path / "o.safetensors", tmp_path / "out.safetensors"),
    ):
        adaptertool.merge(base, [path], out)
    folder, file = load_file(tmp_path / "out" / FILE), load_file(tmp_path / "out.safetensors")
    file = {key.removeprefix(front): one for key, one in file.items()}
    assert sum(not torch.equal(folder[key], one) for key, one in ours.items()) >= len(changes)
    held = file if spelled == "original" else folder
    assert all(half_ulp_excess(held[key], one).max() <= 1 + 1e-6 for key, one in exact.items())
    made = {key: one for key, one in FAMILIES[name][0](dict(file)).items() if one is not None}
    assert made.keys() == folder.keys() and all(torch.equal(folder[key], one) for key, one in made.items())


# class -> the settings of a tiny one
TINY: dict[str, dict[str, Any]] = {
    "ChromaTransformer2DModel": {
        "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
        "joint_attention_dim": 8, "axes_dims_rope": (2, 2, 4), "approximator_num_channels": 8,
        "approximator_hidden_dim": 8, "approximator_layers": 1,
    },
    "AuraFlowTransformer2DModel": {
        "sample_size": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "attention_head_dim": 4,
        "num_attention_heads": 2, "joint_attention_dim": 8, "caption_projection_dim": 8, "pos_embed_max_size": 16,
    },
    "SanaTransformer2DModel": {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 4, "cross_attention_dim": 8, "sample_size": 4,
        "caption_channels": 8,
    },
    "MochiTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "pooled_projection_dim": 8,
        "in_channels": 4, "text_embed_dim": 8, "time_embed_dim": 8, "max_sequence_length": 8,
    },
    "WanVACETransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8,
        "freq_dim": 8, "ffn_dim": 8, "num_layers": 2, "vace_layers": [0, 1], "vace_in_channels": 8,
    },
    "SkyReelsV2Transformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8,
        "freq_dim": 8, "ffn_dim": 8, "num_layers": 1, "inject_sample_info": True,
    },
    "LTX2VideoTransformer3DModel": {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1,
        "cross_attention_dim": 8, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8, "caption_channels": 8,
    },
    "CosmosTransformer3DModel": {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
        "text_embed_dim": 8, "adaln_lora_dim": 4, "max_size": (4, 8, 8),
    },
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
        "attention_head_dim": 8, "num_attention_heads": 2, "caption_channels": [8, 8], "text_emb_dim": 8,
        "axes_dims_rope": (4, 4), "max_resolution": (8, 8), "llama_layers": [0, 0],
    },
    "Krea2Transformer2DModel": {
        "in_channels": 4, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 8, "timestep_embed_dim": 8, "text_hidden_dim": 8,
        "num_text_layers": 2, "text_num_attention_heads": 2, "text_num_key_value_heads": 2,
        "text_intermediate_size": 8, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
        "axes_dims_rope": (2, 2, 4),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_a_merge_is_what_diffusers_fuses(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    model = getattr(diffusers, name)(**TINY[name])
    model.save_pretrained(tmp_path / "base")
    tensors, changed = dict[str, torch.Tensor](), 0
    for layer, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            out, inner = module.weight.shape
            tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(1, inner)
            tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(out, 1)
            changed += 1
    save_file(tensors, tmp_path / "a.safetensors")
    adaptertool.merge(tmp_path / "base", [tmp_path / "a.safetensors"], tmp_path / "out")
    model.load_lora_adapter(tensors, prefix="transformer")
    model.fuse_lora()
    fused = {key.replace(".base_layer", ""): one for key, one in model.state_dict().items() if ".lora_" not in key}
    before, found = (load_file(tmp_path / folder / FILE) for folder in ("base", "out"))
    assert changed > 8 and sum(not torch.equal(found[key], one) for key, one in before.items()) == changed
    for key, one in found.items():
        assert torch.allclose(fused[key], one, rtol=1e-5, atol=1e-6), key
