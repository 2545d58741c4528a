"""Changes that a tool put on other rows: halves that it did not swap, and q, k and v that it cut at thirds. And
magnitudes that it left out of parts of a tensor, and of input channels."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import torch
from conftest import load, lora_factors, write_adapter, write_checkpoint
from originals import FILE, HIDDEN, write_bases, write_factors
from safetensors.torch import load_file, save_file

import adaptertool

Tensors = dict[str, torch.Tensor]
NORM, FINAL = "norm_out.linear.weight", "final_layer.adaLN_modulation.1.weight"
IN_FILE = "model.diffusion_model."


def named(merged: Path, base: Path, adapter: Path) -> dict[str, str | None]:
    report = adaptertool.verify(merged, base, [adapter])
    return {one.name: one.diagnosis for one in report.tensors if one.status == "wrong"}


def rewritten(base: Path, merged: Path, others: Tensors) -> tuple[Path, Path]:
    """(what is honest, done in float32 by torch; the same with these tensors): where the merge has been written."""
    file = merged / FILE if base.is_dir() else merged
    tensors = load_file(file)
    assert others.keys() <= tensors.keys()
    tensors |= others
    save_file(tensors, file)
    return merged, file


@pytest.mark.parametrize("kind", ["", "dora", "lokr"])
@pytest.mark.parametrize("spelled", ["original", "ours"])
def test_halves_that_are_not_swapped(tmp_path: Path, spelled: str, kind: str) -> None:
    original, ours, file, folder = write_bases(tmp_path)
    name, weight = (FINAL, original[FINAL]) if spelled == "original" else (NORM, ours[NORM])
    base, key, before = (
        (folder, NORM, ours[NORM]) if spelled == "original" else (file, IN_FILE + FINAL, original[FINAL])
    )
    changes = write_factors(tmp_path / "a.safetensors", {name.removesuffix(".weight"): weight}, kind)
    out = tmp_path / ("out" if base.is_dir() else "out.safetensors")
    adaptertool.merge(base, [tmp_path / "a.safetensors"], out)
    first, second = changes[name].chunk(2)
    rewritten(base, out, {key: (before + torch.cat([second, first]).float())})
    assert not named(out, base, tmp_path / "a.safetensors")
    wrong = before.double() + changes[name]
    if kind == "dora":  # as the tool computes it: norms of the rows that it takes for those of the adapter
        with_factors = load_file(tmp_path / "a.safetensors")
        scale = next(one for key, one in with_factors.items() if key.endswith("dora_scale")).double()
        a, b = (next(o for k, o in with_factors.items() if k.endswith(f"{r}.weight")) for r in ("down", "up"))
        moved = before.double() + b.double() @ a.double()
        wrong = scale * moved / moved.norm(dim=1, keepdim=True)
    rewritten(base, out, {key: wrong.float()})
    assert named(out, base, tmp_path / "a.safetensors") == {key: "halves-not-swapped"}


@pytest.mark.parametrize("changed", ["qkvm", "qkv", "qv", "k"])
def test_parts_of_a_fused_layer_at_thirds(tmp_path: Path, changed: str) -> None:
    original, ours, file, _ = write_bases(tmp_path)
    key, front = "single_blocks.0.linear1.weight", "single_transformer_blocks.0"
    modules = {part: f"{front}.attn.to_{part}" for part in "qkv"} | {"m": f"{front}.proj_mlp"}
    changes = write_factors(
        tmp_path / "a.safetensors", {modules[one]: ours[f"{modules[one]}.weight"] for one in changed}
    )
    out = tmp_path / "out.safetensors"
    adaptertool.merge(file, [tmp_path / "a.safetensors"], out)
    own = {"q": 0, "k": HIDDEN, "v": 2 * HIDDEN, "m": 3 * HIDDEN}
    thirds = own | {"k": 7 * HIDDEN // 3, "v": 14 * HIDDEN // 3}
    for starts in (own, thirds):
        made = original[key].clone()
        for one in changed:
            made[starts[one] :][: len(changes[f"{modules[one]}.weight"])] += changes[f"{modules[one]}.weight"].float()
        rewritten(file, out, {IN_FILE + key: made})
        expected = {IN_FILE + key: "cut-in-thirds"} if starts is thirds else {}
        assert named(out, file, tmp_path / "a.safetensors") == expected


def test_a_fused_layer_cut_at_thirds(tmp_path: Path) -> None:
    original, ours, _, folder = write_bases(tmp_path)
    module, front = "single_blocks.0.linear1", "single_transformer_blocks.0"
    (change,) = write_factors(tmp_path / "a.safetensors", {module: original[f"{module}.weight"]}).values()
    adaptertool.merge(folder, [tmp_path / "a.safetensors"], tmp_path / "out")
    for starts, names in (((0, 1, 2), ""), ((0, 7 / 3, 14 / 3), "kv")):
        made = {}
        for part, start in zip("qkv", starts, strict=True):
            key, first = f"{front}.attn.to_{part}.weight", int(start * HIDDEN)
            made[key] = ours[key] + change[first : first + HIDDEN].float()
        rewritten(folder, tmp_path / "out", made)
        expected = {f"{front}.attn.to_{part}.weight": "cut-in-thirds" for part in names}
        assert named(tmp_path / "out", folder, tmp_path / "a.safetensors") == expected


def test_grouped_queries_at_thirds(tmp_path: Path) -> None:
    """k and v are a quarter of q each, and a tool puts all three where they would be if they were alike."""
    torch.manual_seed(0)
    front, sizes = "model.layers.0.self_attn", {"q": 64, "k": 16, "v": 16}
    config = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 64, "num_attention_heads": 8,
              "num_key_value_heads": 2}  # fmt: skip
    fused = {f"{front}.qkv_proj.weight": torch.randn(96, 64)}
    base = write_checkpoint(tmp_path / "base", fused, config=config)
    low: Tensors = {}
    for part, rows in sizes.items():
        low |= lora_factors(f"{front}.{part}_proj", (rows, 64))
    adapter = write_adapter(tmp_path / "a", low)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    for starts in ((0, 64, 80), (0, 32, 64)):
        made = fused[f"{front}.qkv_proj.weight"].clone()
        for (part, rows), start in zip(sizes.items(), starts, strict=True):
            a, b = (low[f"{front}.{part}_proj.lora_{role}.weight"] for role in "AB")
            made[start : start + rows] += 2 * b @ a
        save_file({f"{front}.qkv_proj.weight": made}, tmp_path / "out" / "model.safetensors")
        expected = {f"{front}.qkv_proj.weight": "cut-in-thirds"} if starts[1] == 32 else {}
        assert named(tmp_path / "out", base, adapter) == expected
    assert load(tmp_path / "out").keys() == fused.keys()


def test_magnitudes_that_are_left_out_of_a_part(tmp_path: Path) -> None:
    """DoRA of q, in a tensor that holds k and v as well."""
    original, ours, file, _ = write_bases(tmp_path)
    module, key = "transformer_blocks.1.attn.to_q", "double_blocks.1.img_attn.qkv.weight"
    a, b, weight = torch.randn(1, 2), torch.randn(3, 1), ours[f"{module}.weight"]
    factors = {"lora_A.weight": a, "lora_B.weight": b, "lora_magnitude_vector": torch.rand(3) + 0.5}
    save_file({f"transformer.{module}.{name}": one for name, one in factors.items()}, tmp_path / "a.safetensors")
    adaptertool.merge(file, [tmp_path / "a.safetensors"], tmp_path / "out.safetensors")
    made = original[key].clone()
    made[:3] = weight + b @ a
    rewritten(file, tmp_path / "out.safetensors", {IN_FILE + key: made})
    wrong = named(tmp_path / "out.safetensors", file, tmp_path / "a.safetensors")
    assert wrong == {IN_FILE + key: "magnitude-ignored"}


def test_magnitudes_that_are_left_out_of_input_channels(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base.safetensors", tmp_path / "a.safetensors"
    key, weight = "conv_in", torch.randn(6, 5, 3, 3)
    save_file({f"model.diffusion_model.{key}.weight": weight}, base)
    a, b = torch.randn(2, 5, 3, 3), torch.randn(6, 2, 1, 1)
    factors = {"lora_down.weight": a, "lora_up.weight": b, "dora_scale": torch.rand(1, 5, 1, 1) + 0.5}
    save_file({f"lora_unet_{key}.{name}": one for name, one in factors.items()}, adapter)
    adaptertool.merge(base, [adapter], tmp_path / "out.safetensors")
    made = weight + (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
    rewritten(base, tmp_path / "out.safetensors", {f"{IN_FILE}{key}.weight": made})
    wrong = named(tmp_path / "out.safetensors", base, adapter)
    assert wrong == {f"{IN_FILE}{key}.weight": "magnitude-ignored"}
