"""Adapters as Tinker saves them raw, with the experts of a projection in one tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Tensors, load, same_bits, write_adapter, write_checkpoint
from expert_models import E_, R_, X, experts, merged_experts, one_by_one

import adaptertool
from adaptertool.errors import MismatchError, UnsupportedError

LAYERS = {"w1": "gate", "w2": "down", "w3": "up"}


def stacked(factors: Tensors) -> Tensors:
    """Factors of single experts as Tinker has them; lora_A of all that go up, and lora_B of those down, are one."""
    made = {}
    for layer, part in LAYERS.items():
        for role in "AB":
            some = [factors[f"{X}.{e}.{part}_proj.lora_{role}.weight"] for e in range(E_)]
            common = (role == "A") == (part != "down")
            made[f"{X}.{layer}.lora_{role}.weight"] = torch.stack(some[:1] if common else some)
    return made


def alike(factors: Tensors) -> Tensors:
    """The same with what they have in common as Tinker has it."""
    for part in LAYERS.values():
        role = "B" if part == "down" else "A"
        for e in range(E_):
            factors[f"{X}.{e}.{part}_proj.lora_{role}.weight"] = factors[f"{X}.0.{part}_proj.lora_{role}.weight"]
    return factors


@pytest.mark.parametrize("how", ["apart", "fused", "transposed", "interleaved"])
def test_stacked_experts_onto_every_way_of_storing_them(tmp_path: Path, how: str) -> None:
    weights, factors = experts(), alike(one_by_one())
    (tmp_path / "right").mkdir()
    plain = write_adapter(tmp_path / "plain", {key: tensor.clone() for key, tensor in factors.items()}, r=R_)
    right = merged_experts(tmp_path / "right", how, weights, plain)
    raw = write_adapter(tmp_path / "raw", stacked(factors), r=R_)
    (tmp_path / "merged").mkdir()
    found = merged_experts(tmp_path / "merged", how, weights, raw)
    assert found.keys() == right.keys() and all(same_bits(found[name], right[name]) for name in right)
    report = adaptertool.sum_adapters([raw, raw], tmp_path / "sum")
    assert any("its experts are stacked, as Tinker" in note for note in report.notes)
    assert {key for key in load(tmp_path / "sum") if ".0." in key} >= {f"base_model.model.{key}" for key in factors}


def test_experts_without_a_gate(tmp_path: Path) -> None:
    """As of Nemotron, where w1 goes up."""
    weights = {f"{X}.{e}.{part}_proj.weight": torch.randn(4, 4) for e in range(2) for part in ("up", "down")}
    base = write_checkpoint(tmp_path / "base", weights)
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 3)
    raw = write_adapter(tmp_path / "raw", {f"{X}.w1.lora_A.weight": a, f"{X}.w1.lora_B.weight": b}, r=3, lora_alpha=3)
    adaptertool.merge(base, [raw], tmp_path / "out")
    found = load(tmp_path / "out")
    for e in range(2):
        exact = weights[f"{X}.{e}.up_proj.weight"].double() + b[e].double() @ a[e].double()
        assert torch.allclose(found[f"{X}.{e}.up_proj.weight"].double(), exact, rtol=1e-6, atol=1e-6)
        assert same_bits(found[f"{X}.{e}.down_proj.weight"], weights[f"{X}.{e}.down_proj.weight"])


@pytest.mark.parametrize(
    ("counts", "error", "match"),
    [
        ((1, 1), UnsupportedError, r"both factors of .*experts\.w1 are those of all experts, and how many there are"),
        ((2, 3), MismatchError, r"is F32 2×3×4, and its other factor is of other experts"),
    ],
)
def test_numbers_of_experts_that_do_not_fit(
    tmp_path: Path, counts: tuple[int, int], error: type[Exception], match: str
) -> None:
    tensors = {
        f"{X}.w1.lora_A.weight": torch.ones(counts[0], 3, 4),
        f"{X}.w1.lora_B.weight": torch.ones(counts[1], 4, 3),
    }
    with pytest.raises(error, match=match):
        adaptertool.sum_adapters([write_adapter(tmp_path / "raw", tensors, r=3)], tmp_path / "out")
