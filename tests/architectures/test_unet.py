"""The U-Net in both spellings, held against diffusers' own converter, whatever blocks it is made of."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")

import pipelines
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from adaptertool.architectures.unet import is_unet, relations

_XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (4, 8, 8),
}
_OF_1 = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "addition_embed_type": None,
    "use_linear_projection": False,
}
_UNCLIP = {"addition_embed_type": None, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 4}


@pytest.mark.parametrize(
    "more",
    [{}, _XL, _XL | {"transformer_layers_per_block": (1, 2, 3)}, _OF_1, _OF_1 | {"layers_per_block": 1}, _UNCLIP],
)
def test_as_diffusers_converts_it(more: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = pipelines.unet(**more)
    ours = model.state_dict()
    pairs = list(relations(ours.keys()))
    assert sorted(pair.ours for pair in pairs) == sorted(ours)
    original = {pair.original: ours[pair.ours] for pair in pairs}
    assert is_unet(ours.keys())
    assert is_unet(original.keys())
    made = convert_ldm_unet_checkpoint({f"model.diffusion_model.{k}": v for k, v in original.items()}, model.config)
    assert made.keys() == ours.keys()
    assert all(made[name] is own for name, own in ours.items())
    # label_emb may be of either of two embeddings of diffusers
    assert {(pair.ours, pair.original) for pair in relations(original.keys())} >= {pair[:2] for pair in pairs}


def test_the_formula_of_sdxl() -> None:
    """Two layers a block: as the names are counted in pipelines.sgm_name."""
    with torch.device("meta"):
        names = pipelines.unet().state_dict().keys()
    assert {pair.ours: pair.original for pair in relations(names)} == {name: pipelines.sgm_name(name) for name in names}
