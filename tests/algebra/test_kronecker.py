"""`truncate` of LoKr: as LoRA, as near as the singular values of the whole allow, and no worse than it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PREFIX, Tensors, load, write_checkpoint
from one_kind import write
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import UnsupportedError
from adaptertool.reports.adapters import LayerTruncated

A, C, B, D, R, ALPHA = 6, 4, 5, 8, 3, 2.0
FORMS = {
    "stored": {"w1": (A, C), "w2": (B, D)},
    "one product": {"w1": (A, C), "w2_a": (B, R), "w2_b": (R, D)},
    "two products": {"w1_a": (A, R), "w1_b": (R, C), "w2_a": (B, R), "w2_b": (R, D)},
}
RANKS = {"stored": 4 * 5, "one product": 4 * 3, "two products": 9}


def factors(form: str, dtype: torch.dtype = torch.float32) -> Tensors:
    return {f"lokr_{role}": torch.randn(shape).to(dtype) for role, shape in FORMS[form].items()}


def whole(some: Tensors) -> Any:
    """The change, float64, made by numpy."""
    one = {role.removeprefix("lokr_"): tensor.double().numpy() for role, tensor in some.items()}
    w1, w2 = (one[side] if side in one else one[f"{side}_a"] @ one[f"{side}_b"] for side in ("w1", "w2"))
    return ALPHA / R * np.kron(w1, w2)


def adapter(folder: Path, some: Tensors, **fields: Any) -> Path:
    tensors = {f"{PREFIX}l.{role}": tensor for role, tensor in some.items()}
    return write(folder, tensors, peft_type="LOKR", r=R, alpha=ALPHA, **fields)


def made(folder: Path) -> Any:
    """The change of the LoRA that was written."""
    tensors = load(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    b, a = (tensors[f"{PREFIX}l.lora_{side}.weight"].double().numpy() for side in "BA")
    assert config["peft_type"] == "LORA" and config["r"] == len(a) and not config["rank_pattern"]
    return config["lora_alpha"] / config["r"] * (b @ a)


def told(report: Any) -> LayerTruncated:
    (layer,) = report.layers
    assert isinstance(layer, LayerTruncated)
    return layer


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_nearest_of_a_rank(tmp_path: Path, form: str, balance: bool) -> None:
    """Eckart and Young: no matrix of the rank is nearer than the singular values that are left out."""
    some = factors(form)
    path, full = adapter(tmp_path / "a", some), whole(some)
    values = np.linalg.svd(full, compute_uv=False)
    for rank in (1, 2, 7, RANKS[form], 100):
        layer = told(adaptertool.truncate(path, tmp_path / f"{rank}", rank=rank, balance=balance))
        assert (layer.rank_before, layer.rank) == (RANKS[form], min(rank, RANKS[form]))
        off = np.linalg.norm(made(tmp_path / f"{rank}") - full) / np.linalg.norm(full)
        best = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
        assert layer.error == pytest.approx(best, abs=1e-12)
        assert abs(off - best) <= layer.storing + 1e-12 and layer.storing < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    some = factors("one product", dtype)
    layer = told(adaptertool.truncate(adapter(tmp_path / "a", some), tmp_path / "out", rank=5))
    full = whole(some)
    off = np.linalg.norm(made(tmp_path / "out") - full) / np.linalg.norm(full)
    assert abs(off - layer.error) <= layer.storing + 1e-13
    assert load(tmp_path / "out" / "adapter_model.safetensors")[f"{PREFIX}l.lora_A.weight"].dtype == dtype


def test_by_error_and_by_energy(tmp_path: Path) -> None:
    some = factors("two products")
    path, values = adapter(tmp_path / "a", some), np.linalg.svd(whole(some), compute_uv=False)
    shares = np.sqrt(np.append(values**2, 0)[::-1].cumsum()[::-1]) / np.linalg.norm(values)
    for most in (0.5, 0.1):
        layer = told(adaptertool.truncate(path, tmp_path / f"{most}", max_error=most, spectra=True))
        assert layer.rank == np.argmax(shares <= most) and layer.error + layer.storing <= most
        assert layer.values[:9] == pytest.approx((values / values[0])[:9].tolist()) or len(layer.values) >= 9
    layer = told(adaptertool.truncate(path, tmp_path / "energy", energy=0.9))
    assert layer.rank == np.argmax(shares**2 <= 0.1)
    with pytest.raises(UnsupportedError, match="no LoRA in F32 is within"):
        adaptertool.truncate(path, tmp_path / "none", max_error=1e-12)
    assert not (tmp_path / "none").exists()


def test_ends_of_the_range_and_zeros(tmp_path: Path) -> None:
    some = factors("stored", torch.float64)
    large = {"lokr_w1": some["lokr_w1"] * 2.0**900, "lokr_w2": some["lokr_w2"] * 2.0**-1000}
    layer = told(adaptertool.truncate(adapter(tmp_path / "a", large), tmp_path / "large", rank=6))
    plain = told(adaptertool.truncate(adapter(tmp_path / "b", some), tmp_path / "plain", rank=6))
    assert dataclasses.replace(layer, error=0, energy=0, storing=0) == dataclasses.replace(
        plain, error=0, energy=0, storing=0
    )
    assert layer.error == pytest.approx(plain.error)
    assert made(tmp_path / "large") * 2.0**100 == pytest.approx(made(tmp_path / "plain"))
    nothing = {role: torch.zeros_like(tensor) for role, tensor in some.items()}
    layer = told(adaptertool.truncate(adapter(tmp_path / "c", nothing), tmp_path / "nothing", rank=6))
    assert layer.error == 0 and not made(tmp_path / "nothing").any()


def test_merged_as_what_it_says(tmp_path: Path) -> None:
    """The merge of the LoRA at the whole rank is that of the LoKr, but for the rounding of its factors."""
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(A * B, C * D)})
    path = adapter(tmp_path / "a", factors("two products"))
    adaptertool.truncate(path, tmp_path / "lora", rank=100)
    for name, one in (("of", path), ("as", tmp_path / "lora")):
        adaptertool.merge(base, [one], tmp_path / name)
    got, expected = (load(tmp_path / name / "model.safetensors")["l.weight"] for name in ("as", "of"))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_what_has_none_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(A * B, C * D)})
    path = adapter(tmp_path / "a", factors("stored"))
    with pytest.raises(UnsupportedError, match="told without --base"):
        adaptertool.truncate(path, tmp_path / "out", rank=2, base=base)
    shapes = {"hada_w1_a": (4, 2), "hada_w1_b": (2, 5), "hada_w2_a": (4, 2), "hada_w2_b": (2, 5)}
    loha = {f"{PREFIX}l.{role}": torch.randn(shape) for role, shape in shapes.items()}
    loha_at = write(tmp_path / "loha", loha, peft_type="LOHA", r=2, alpha=ALPHA)
    with pytest.raises(UnsupportedError, match="no pair of factors to cut"):
        adaptertool.truncate(loha_at, tmp_path / "out", rank=2)
    save_file({f"lora_unet_l.{role}": torch.randn(shape) for role, shape in shapes.items()}, tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedError, match="no pair of factors to cut"):
        adaptertool.truncate(tmp_path / "a.safetensors", tmp_path / "out.safetensors", rank=2)
    assert not list(tmp_path.glob("out*"))
