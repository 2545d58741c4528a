"""DoRA whose factors have the dimensions of a convolution where the layer is linear, or the reverse: written, all have
those of the layer, as the libraries that load them want."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import load, write_checkpoint
from safetensors.torch import save_file

import adaptertool

LAYER = "down_blocks.0.attentions.0.proj_in"
OUT, IN, RANK = 6, 4, 2


@pytest.mark.parametrize(("to", "has_base"), [("peft", True), ("peft", False), ("diffusers", True), ("comfy", True)])
@pytest.mark.parametrize("conv", [False, True])
def test_all_have_the_dimensions_of_the_layer(tmp_path: Path, conv: bool, to: str, has_base: bool) -> None:
    torch.manual_seed(2)
    ones, others = ((1, 1), ()) if conv else ((), (1, 1))
    weight = torch.randn(OUT, IN, *ones, dtype=torch.float64)
    base = write_checkpoint(tmp_path / "base", {f"{LAYER}.weight": weight})
    down, up, m = torch.randn(RANK, IN, *others), torch.randn(OUT, RANK, *others), torch.rand(OUT, 1, *ones) + 0.5
    endings = {".lora_down.weight": down, ".lora_up.weight": up, ".dora_scale": m, ".alpha": torch.tensor(2.0)}
    front = "unet." if to == "comfy" else "diffusion_model."
    save_file({f"{front}{LAYER}{end}": one for end, one in endings.items()}, given := tmp_path / "a.safetensors")
    out = tmp_path / ("made" if to == "peft" else "made.safetensors")
    prefix = "diffusion_model." if to == "comfy" else None
    adaptertool.convert(given, out, to=to, prefix=prefix, base=base if has_base else None)
    tensors = load(out / "adapter_model.safetensors" if to == "peft" else out)
    shapes = {key.rpartition(f"{LAYER}.")[2]: tuple(tensor.shape) for key, tensor in tensors.items()}
    magnitude = (OUT, 1, *ones) if to == "comfy" else (1, OUT, *ones) if conv else (OUT,)
    assert magnitude in (shapes.get("lora_magnitude_vector"), shapes.get("dora_scale"))
    assert shapes["lora_A.weight"] == (RANK, IN, *ones)
    assert shapes["lora_B.weight"] == (OUT, RANK, *ones)
    adaptertool.merge(base, [out], tmp_path / "merged")
    v = weight.flatten(1) + up.flatten(1).double() @ down.flatten(1).double()
    expected = v * m.double().reshape(OUT, 1) / v.norm(dim=1, keepdim=True)
    merged = load(tmp_path / "merged" / "model.safetensors")[f"{LAYER}.weight"].flatten(1)
    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)
