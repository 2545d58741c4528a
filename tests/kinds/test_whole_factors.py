"""Kinds whose factors cannot be cut by rows: on a part of a fused projection, and from a fused one onto split ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Tensors, load, same_bits, write_checkpoint
from one_kind import write

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

OUT, IN = 8, 12
PHI = (
    '{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_attention_heads": 2, "hidden_size": 8,'
    ' "num_key_value_heads": 2, "tie_word_embeddings": false}'
)
NAME = "model.layers.0.self_attn"
PLACES = torch.tensor([[0, 3, 7, 7], [11, 0, 1, 2]], dtype=torch.int32)


def factors(kind: str) -> tuple[Tensors, dict[str, object]]:
    """Of a layer (OUT, IN)."""
    if kind == "SHIRA":
        return {"shira_weight": torch.randn(4), "shira_indices": PLACES}, {"r": 1}
    if kind == "FOURIERFT":
        return {"fourierft_spectrum": torch.randn(5)}, {"random_loc_seed": 3, "scaling": 90.0}
    if kind == "WAVEFT":
        fields = {"random_loc_seed": 3, "scaling": 9.0, "use_idwt": True, "wavelet_family": "db2"}
        return {"waveft_spectrum": torch.randn(5)}, fields
    if kind == "C3A":
        return {"c3a_kernel": torch.randn(2, 3, 4)}, {}
    if kind == "IA3":
        return {"ia3_l": torch.randn(1, IN)}, {"feedforward_modules": ".*"}
    return {"lokr_w1": torch.randn(2, 3), "lokr_w2_a": torch.randn(4, 2), "lokr_w2_b": torch.randn(2, 4)}, {
        "r": 2, "alpha": 3
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["SHIRA", "FOURIERFT", "WAVEFT", "C3A", "LOKR", "IA3"])
def test_on_a_part_of_a_fused_projection(tmp_path: Path, kind: str) -> None:
    """The same numbers as on a layer of its own."""
    fused = torch.randn(3 * OUT, IN)
    base = write_checkpoint(tmp_path / "base", {f"{NAME}.qkv_proj.weight": fused})
    (base / "config.json").write_text(PHI)
    alone = write_checkpoint(tmp_path / "alone", {"l.weight": fused[OUT : 2 * OUT].clone()})
    tensors, fields = factors(kind)
    for name, onto, out in ((f"{NAME}.k_proj", base, "fused-out"), ("l", alone, "alone-out")):
        adapter = write(tmp_path / out / "a", {f"{name}.{k}": t for k, t in tensors.items()}, peft_type=kind, **fields)
        adaptertool.merge(onto, [adapter], tmp_path / out / "out")
        assert adaptertool.verify(tmp_path / out / "out", onto, [adapter]).ok
    found = load(tmp_path / "fused-out" / "out")[f"{NAME}.qkv_proj.weight"]
    own = load(tmp_path / "alone-out" / "out")["l.weight"]
    assert same_bits(found, torch.cat([fused[:OUT], own, fused[2 * OUT :]])) and not own.equal(fused[OUT : 2 * OUT])


def fused_and_split(tmp_path: Path, kind: str) -> tuple[Path, Path, Path]:
    """An adapter of a fused projection, and bases that have it fused and split."""
    names = [f"{NAME}.{part}_proj.weight" for part in "qkv"]
    parts = {name: torch.randn(OUT, IN) for name in names}
    fused = {f"{NAME}.qkv_proj.weight": torch.cat([*parts.values()])}
    bases = [write_checkpoint(tmp_path / f"base{len(tensors)}", tensors) for tensors in (fused, parts)]
    for base in bases:
        (base / "config.json").write_text(PHI)
    tensors, fields = factors(kind)
    adapter = write(tmp_path / "a", {f"{NAME}.qkv_proj.{k}": t for k, t in tensors.items()}, peft_type=kind, **fields)
    return adapter, *bases


@pytest.mark.parametrize("kind", ["SHIRA", "FOURIERFT", "IA3"])
def test_a_fused_projection_onto_split_ones(tmp_path: Path, kind: str) -> None:
    """The same numbers as on the fused one."""
    adapter, *bases = fused_and_split(tmp_path, kind)
    for base in bases:
        adaptertool.merge(base, [adapter], tmp_path / f"out-{base.name}")
    found, apart = (load(tmp_path / f"out-{base.name}") for base in bases)
    own = found[f"{NAME}.qkv_proj.weight"]
    assert same_bits(own, torch.cat([apart[f"{NAME}.{part}_proj.weight"] for part in "qkv"]))
    assert not own.equal(load(bases[0])[f"{NAME}.qkv_proj.weight"])


@pytest.mark.parametrize("kind", ["WAVEFT", "C3A", "LOKR"])
def test_a_fused_projection_onto_split_ones_is_refused(tmp_path: Path, kind: str) -> None:
    adapter, _, split = fused_and_split(tmp_path, kind)
    with pytest.raises((UnsupportedError, MismatchError)):
        adaptertool.merge(split, [adapter], tmp_path / "out")


@pytest.mark.parametrize("kind", ["C3A", "LOKR"])
def test_a_part_of_another_size_is_refused(tmp_path: Path, kind: str) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{NAME}.qkv_proj.weight": torch.randn(3 * OUT, IN + 3)})
    (base / "config.json").write_text(PHI)
    tensors, fields = factors(kind)
    adapter = write(tmp_path / "a", {f"{NAME}.k_proj.{k}": t for k, t in tensors.items()}, peft_type=kind, **fields)
    with pytest.raises(InputError):
        adaptertool.merge(base, [adapter], tmp_path / "out")
