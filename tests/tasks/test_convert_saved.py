"""`convert` of tensors that take the place of the base's, and of whole differences: ComfyUI's `.set_weight`, `.diff`,
`.diff_b`, kohya's `.diff` and `.diff_b`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tensors, load, lora_factors, same_bits, write_adapter, write_checkpoint
from oracle import fractions, round_fraction
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import UnsupportedError

Q, HEAD, TEXT = "blocks.0.q", "head", "text_model.encoder.layers.0.mlp.fc1"
SHAPES = {f"{Q}.weight": (8, 8), f"{Q}.bias": (8,), f"{HEAD}.weight": (3, 8), f"{HEAD}.bias": (3,)}


def base_of(folder: Path) -> Path:
    tensors = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    return write_checkpoint(folder, tensors, config={"tie_word_embeddings": False})


def merged(base: Path, adapter: Path, out: Path) -> Tensors:
    adaptertool.merge(base, [adapter], out)
    return load(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_base", [False, True])
def test_saved_tensors_there_and_back(tmp_path: Path, dtype: torch.dtype, with_base: bool) -> None:
    """peft -> comfy -> peft, bit by bit, and the same merge of all."""
    base = base_of(tmp_path / "base")
    saved = {f"{HEAD}.weight": torch.randn(3, 8).to(dtype), f"{Q}.bias": torch.randn(8).to(dtype)}
    first = write_adapter(tmp_path / "a", {**lora_factors(Q, (8, 8)), **saved}, bias="all", modules_to_save=[HEAD])
    comfy = tmp_path / "b.safetensors"
    report = adaptertool.convert(first, comfy, to="comfy", base=base if with_base else None)
    assert report.rounded == 0
    tensors = load(comfy)
    assert same_bits(tensors["diffusion_model.head.set_weight"], saved[f"{HEAD}.weight"])
    assert same_bits(tensors["diffusion_model.blocks.0.q.bias.set_weight"], saved[f"{Q}.bias"])
    adaptertool.convert(comfy, tmp_path / "c", to="peft", base=base)
    before, after = load(first), load(tmp_path / "c")
    assert before.keys() == after.keys()
    assert all(same_bits(tensor, after[name]) for name, tensor in before.items())
    one, *others = (merged(base, path, tmp_path / f"m{path.stem}") for path in (first, comfy, tmp_path / "c"))
    assert all(same_bits(tensor, other[name]) for other in others for name, tensor in one.items())


def test_differences_of_both_formats(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    own = {f"diffusion_model.{Q}.diff": torch.randn(8, 8), f"diffusion_model.{HEAD}.diff_b": torch.randn(3)}
    save_file(own, comfy := tmp_path / "a.safetensors")
    adaptertool.convert(comfy, kohya := tmp_path / "b.safetensors", to="kohya", base=base, prefix="lora_unet_")
    assert set(load(kohya)) == {"lora_unet_blocks_0_q.diff", "lora_unet_head.diff_b"}
    adaptertool.convert(kohya, back := tmp_path / "c.safetensors", to="comfy", base=base, prefix="diffusion_model.")
    after = load(back)
    assert after.keys() == own.keys()
    assert all(same_bits(tensor, after[name]) for name, tensor in own.items())
    one, two = merged(base, comfy, tmp_path / "m1"), merged(base, kohya, tmp_path / "m2")
    assert all(same_bits(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_saved_tensors_are_differences_in_kohyas_format(tmp_path: Path, dtype: torch.dtype) -> None:
    """T - W, each element as rationals round it to float32 at least, and what is not exact is counted."""
    torch.manual_seed(4)
    weights = {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}
    base = write_checkpoint(tmp_path / "base", weights, config={"tie_word_embeddings": False})
    saved = {f"{HEAD}.weight": torch.randn(3, 8).to(dtype), f"{Q}.bias": torch.randn(8).to(dtype)}
    saved[f"{HEAD}.weight"][0, :2] = torch.tensor([2.0**15, 2.0**-14])
    first = write_adapter(tmp_path / "a", {**lora_factors(Q, (8, 8)), **saved}, bias="all", modules_to_save=[HEAD])
    report = adaptertool.convert(first, kohya := tmp_path / "b.safetensors", to="kohya", base=base)
    tensors, wide = load(kohya), torch.float64 if dtype == torch.float64 else torch.float32
    inexact = 0
    for name, key in ((f"{HEAD}.weight", "lycoris_head.diff"), (f"{Q}.bias", "lycoris_blocks_0_q.diff_b")):
        exact = [one - other for one, other in zip(fractions(saved[name]), fractions(weights[name]), strict=True)]
        assert tensors[key].dtype == wide
        assert fractions(tensors[key]) == [round_fraction(number, wide) for number in exact]
        inexact += sum(one != other for one, other in zip(fractions(tensors[key]), exact, strict=True))
    assert report.rounded == inexact
    one, two = merged(base, first, tmp_path / "m1"), merged(base, kohya, tmp_path / "m2")
    assert one.keys() == two.keys()
    units = torch.finfo(dtype).eps * 2 if dtype in (torch.float32, torch.float64) else 0  # T - W is exact, or near it
    assert all(((tensor - two[name]).abs() <= units * tensor.abs() + units).all() for name, tensor in one.items())


SAVED = {f"{HEAD}.weight": torch.ones(3, 8)}
REFUSED: dict[str, tuple[str, Tensors, dict[str, Any], str]] = {
    "kohya": ("kohya", SAVED, {}, "saved whole"),
    "diffusers": ("diffusers", SAVED, {}, "saved whole"),
    "token rows": (
        "comfy",
        {"embed.token_adapter.trainable_tokens_delta": torch.ones(1, 4)},
        {"trainable_token_indices": {"embed": [1]}},
        "saved whole",
    ),
    "a bias of a text encoder": ("comfy", {f"{TEXT}.bias": torch.ones(8)}, {"bias": "all"}, "and no weight"),
    "under factors": ("comfy", {f"{Q}.base_layer.weight": torch.ones(8, 8)}, {}, "saved whole, and changed as well"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused_by_name(tmp_path: Path, case: str) -> None:
    to, saved, config, match = REFUSED[case]
    adapter = write_adapter(tmp_path / "a", {**lora_factors(Q, (8, 8)), **saved}, **config)
    with pytest.raises(UnsupportedError, match=match):
        adaptertool.convert(adapter, tmp_path / "out.safetensors", to=to)
    assert not (tmp_path / "out.safetensors").exists()
