"""Text encoders as OpenCLIP names them, held against diffusers' own converter."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

import pipelines
import torch
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from adaptertool.architectures.clip import relations
from adaptertool.architectures.relation import aliases


def test_as_diffusers_converts_it() -> None:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=4, projection_dim=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config)
    ours = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    original = pipelines.open_clip(ours)
    made = convert_open_clip_checkpoint(model, {f"x.{k}": v for k, v in original.items()}, prefix="x.")
    assert all(torch.equal(made[name], own) for name, own in ours.items())
    found = aliases(original.keys(), relations(original.keys()))
    for name, own in ours.items():
        for spelled in (name, name.removeprefix("text_model.")):
            ((piece,),) = found[spelled]
            tensor = original[piece.disk]
            if piece.cut is not None and piece.cut.turned:
                tensor = tensor.T
            elif piece.cut is not None:
                rows = piece.cut.of(len(tensor))
                tensor = tensor[rows.start : rows.stop]
            assert torch.equal(tensor, own), name


def test_the_spellings_of_transformers_4_and_5() -> None:
    name = "encoder.layers.0.mlp.fc1.weight"
    for stored, other in ((name, f"text_model.{name}"), (f"text_model.{name}", name)):
        ((piece,),) = aliases({stored: 0}.keys(), relations([stored]))[other]
        assert (piece.disk, piece.cut) == (stored, None)
