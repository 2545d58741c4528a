"""LoRA of XLabs for FLUX, against diffusers' converter of them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import torch
from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers as converted
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers as convert
from oracle import half_ulp_excess
from originals import FILE, HIDDEN, write_bases
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError

ROWS = {"double_blocks.1": {"qkv_lora1": 9, "proj_lora1": 3, "qkv_lora2": 9, "proj_lora2": 3},
        "single_blocks.0": {"qkv_lora": 3 * HIDDEN, "proj_lora": 3}}  # fmt: skip


def lora(prefix: str = "") -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    made = {}
    for block, layers in ROWS.items():
        for layer, rows in layers.items():
            made[f"{prefix}{block}.processor.{layer}.down.weight"] = torch.randn(1, 2)
            made[f"{prefix}{block}.processor.{layer}.up.weight"] = torch.randn(rows, 1)
    return made


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_a_merge_is_what_diffusers_makes_of_it(tmp_path: Path, prefix: str) -> None:
    _, ours, file, folder = write_bases(tmp_path)
    save_file(lora(prefix), tmp_path / "a.safetensors")
    exact = {name: tensor.double() for name, tensor in ours.items()}
    read = converted(lora(prefix))
    modules = {key.rpartition(".lora_")[0].removeprefix("transformer.") for key in read}
    assert len(modules) == 3 + 1 + 3 + 1 + 3 + 1
    for module in modules:
        a, b = (read[f"transformer.{module}.lora_{role}.weight"].double() for role in "AB")
        exact[f"{module}.weight"] = exact[f"{module}.weight"] + b @ a
    adaptertool.merge(folder, [tmp_path / "a.safetensors"], tmp_path / "out")
    adaptertool.merge(file, [tmp_path / "a.safetensors"], tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    both = convert({key.removeprefix("model.diffusion_model."): one for key, one in merged.items()})
    for found in (load_file(tmp_path / "out" / FILE), both):
        assert all(half_ulp_excess(found[name], one).max() <= 1 + 1e-6 for name, one in exact.items())
    assert adaptertool.inspect(tmp_path / "a.safetensors").adapter is not None
    adaptertool.convert(tmp_path / "a.safetensors", tmp_path / "k.safetensors", to="kohya", base=file)
    assert adaptertool.verify(tmp_path / "out.safetensors", file, [tmp_path / "k.safetensors"]).ok
    if not prefix:  # a file of diffusers
        adaptertool.sum_adapters([tmp_path / "a.safetensors"], tmp_path / "s.safetensors")
        made = load_file(tmp_path / "s.safetensors")
        assert made.keys() == read.keys() and all(torch.equal(made[key], one) for key, one in read.items())


def test_what_is_not_whole_is_refused(tmp_path: Path) -> None:
    _, _, file, _ = write_bases(tmp_path)
    key, path = "single_blocks.0.processor.qkv_lora", tmp_path / "a.safetensors"
    save_file({f"{key}.down.weight": torch.ones(1, 2), f"{key}.up.weight": torch.ones(10, 1)}, path)
    with pytest.raises(MismatchError, match="these are no rows of q, k and v"):
        adaptertool.merge(file, [path], tmp_path / "out.safetensors")
    save_file({f"{key}.down.weight": torch.ones(1, 2)}, path)
    with pytest.raises(InputError, match=r"has _lora\.down\.weight, and no _lora\.up\.weight"):
        adaptertool.merge(file, [path], tmp_path / "out.safetensors")
