"""The table of names, held against diffusers' own converters, run on checkpoints that the table was not made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

pytest.importorskip("diffusers")

import diffusers
import torch
from diffusers.loaders import single_file_utils as converters
from originals import HIDDEN, flux, sd3

from adaptertool.architectures import spellings
from adaptertool.architectures.relation import aliases


def assert_alike(original: dict[str, torch.Tensor], made: dict[str, torch.Tensor], table: Any) -> None:
    """Whether each tensor that a converter makes is where the table says, in either direction."""
    found = aliases(original.keys(), spellings.relations(original.keys(), table))
    for name, own in made.items():
        ((piece,),) = found[name]
        tensor = original[piece.disk]
        if piece.cut is not None and piece.cut.swapped:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        elif piece.cut is not None:
            rows = piece.cut.of(len(tensor))
            tensor = tensor[rows.start : rows.stop]
        assert torch.equal(tensor, own), name
    back = aliases(made.keys(), spellings.relations(made.keys(), table))
    for name, tensor in original.items():
        (pieces,) = back[name]
        own = torch.cat([made[piece.disk] for piece in pieces])
        assert torch.equal(torch.cat(own.chunk(2)[::-1]) if pieces[0].cut is not None else own, tensor), name


@pytest.mark.parametrize(
    ("name", "convert", "make"),
    [
        ("FluxTransformer2DModel", converters.convert_flux_transformer_checkpoint_to_diffusers, flux),
        ("SD3Transformer2DModel", converters.convert_sd3_transformer_checkpoint_to_diffusers, sd3),
    ],
)
def test_rows_are_those_that_diffusers_takes(
    name: str, convert: Callable[..., Any], make: Callable[[], dict[str, torch.Tensor]]
) -> None:
    torch.manual_seed(0)
    original = make()
    made = convert(dict(original))
    table = spellings.table_of(original.keys(), "")
    assert table == spellings.table_of(made.keys(), "") == spellings.table_of((), name)
    assert_alike(original, made, table)


# As the original repositories have them, some of each kind
WAN = ("blocks.1.self_attn.q.weight", "blocks.0.cross_attn.k_img.weight", "blocks.0.norm3.weight",
       "blocks.0.modulation", "blocks.0.ffn.2.bias", "head.head.weight", "time_projection.1.weight",
       "text_embedding.0.weight", "patch_embedding.weight", "blocks.0.cross_attn.norm_k_img.weight",
       "img_emb.proj.1.weight")  # fmt: skip
HUNYUAN = ("double_blocks.0.img_attn_qkv.weight", "single_blocks.1.linear1.weight", "single_blocks.0.linear1.bias",
           "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight", "final_layer.adaLN_modulation.1.weight",
           "double_blocks.1.txt_mlp.fc1.weight", "single_blocks.0.linear2.weight")  # fmt: skip
LUMINA = ("layers.0.attention.qkv.weight", "layers.1.feed_forward.w2.weight", "layers.0.adaLN_modulation.1.weight")
Z_IMAGE = ("layers.0.attention.qkv.weight", "layers.0.attention.out.weight", "noise_refiner.0.feed_forward.w1.weight")
FLUX_2 = ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "double_blocks.0.txt_mlp.0.weight",
          "single_blocks.1.norm.key_norm.scale", "final_layer.adaLN_modulation.1.weight")  # fmt: skip
LTX = ("transformer_blocks.0.attn1.q_norm.weight", "patchify_proj.weight", "adaln_single.linear.weight")


@pytest.mark.parametrize(
    ("name", "convert", "names"),
    [
        ("WanTransformer3DModel", converters.convert_wan_transformer_to_diffusers, WAN),
        ("HunyuanVideoTransformer3DModel", converters.convert_hunyuan_video_transformer_to_diffusers, HUNYUAN),
        ("Lumina2Transformer2DModel", converters.convert_lumina2_to_diffusers, LUMINA),
        ("ZImageTransformer2DModel", converters.convert_z_image_transformer_checkpoint_to_diffusers, Z_IMAGE),
        ("Flux2Transformer2DModel", converters.convert_flux2_transformer_checkpoint_to_diffusers, FLUX_2),
        ("LTXVideoTransformer3DModel", converters.convert_ltx_transformer_checkpoint_to_diffusers, LTX),
    ],
)
def test_names_are_those_that_diffusers_gives(name: str, convert: Callable[..., Any], names: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    rows = {"linear1": 7 * HIDDEN, "layers.0.attention.qkv": 2304 + 2 * 768}
    sizes = {one: next((count for part, count in rows.items() if part in one), 6) for one in names}
    original = {one: torch.randn(size) if "bias" in one else torch.randn(size, 1) for one, size in sizes.items()}
    assert_alike(original, convert(dict(original)), spellings.table_of((), name))


def test_the_table_is_of_the_diffusers_that_is_tested() -> None:
    content = json.loads(files("adaptertool.architectures").joinpath("diffusion.json").read_text())
    assert content["diffusers"] == diffusers.__version__


def test_a_language_model_is_none_of_them() -> None:
    names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(2) for part in "qkvo"]
    assert not spellings.table_of(dict.fromkeys(names).keys(), "")
    assert not spellings.table_of(dict.fromkeys(names).keys(), "UnknownTransformer")
