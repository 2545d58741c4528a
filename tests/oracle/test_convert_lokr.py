"""LoKr of kohya's format in PEFT's: PEFT makes factors of just these shapes, loads them, and merges the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tensors, load, same_bits
from layers import make_base, peft_merge
from oracle import half_ulp_excess
from peft import LoKrConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

import adaptertool
from adaptertool.errors import UnsupportedError

LINEAR, CONV, CONV1 = "linear", "conv2", "conv1"  # (20, 12), (7, 5, 3, 2), (8, 6, 3)
CASES: dict[str, dict[str, Any]] = {
    "usual": {"r": 2, "alpha": 3},
    "all whole": {"r": 32, "alpha": 32},
    "both low": {"r": 1, "alpha": 3, "decompose_both": True},
    "a factor": {"r": 2, "alpha": 3, "decompose_factor": 4},
    "tucker": {"r": 2, "alpha": 3, "use_effective_conv2d": True},
    "ranks": {"r": 2, "alpha": 3, "rank_pattern": {CONV: 1}, "alpha_pattern": {LINEAR: 5}},
    "convolutions low, Linear whole": {
        "r": 3,
        "alpha": -2,
        "rank_pattern": {LINEAR: 40},
        "alpha_pattern": {LINEAR: 40},
    },
}


def made_by_peft(folder: Path, zoo: nn.Module, **config: Any) -> Path:
    model = get_peft_model(zoo, LoKrConfig(target_modules=[LINEAR, CONV], **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lokr" in name:
                parameter.copy_(torch.randn(parameter.shape) / 3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(tmp_path: Path, case: str) -> None:
    torch.manual_seed(3)
    zoo, base = make_base(tmp_path / "base", torch.float32)
    exact_zoo = make_copy(zoo)
    first = made_by_peft(tmp_path / "a", zoo, **CASES[case])
    kohya, back = tmp_path / "b.safetensors", tmp_path / "c"
    assert adaptertool.convert(first, kohya, to="kohya").rounded == 0
    assert adaptertool.convert(kohya, back, to="peft", base=base).rounded == 0
    before, after = load(first), load(back)
    assert before.keys() == after.keys()
    assert all(same_bits(tensor, after[name]) for name, tensor in before.items())
    exact, again = peft_merge(exact_zoo, first), peft_merge(exact_zoo, back)
    alike(exact, again)
    adaptertool.merge(base, [back], tmp_path / "merged")
    merged = load(tmp_path / "merged")
    assert all(half_ulp_excess(tensor, exact[name]).max() <= 1 + 1e-6 for name, tensor in merged.items())


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal in float64, but for scales that are said by another alpha and rank."""
    assert one.keys() == other.keys()
    assert all(torch.allclose(tensor, other[name], rtol=1e-13, atol=1e-14) for name, tensor in one.items())


def make_copy(zoo: nn.Module) -> nn.Module:
    other = type(zoo)()
    other.load_state_dict({name: tensor.clone() for name, tensor in zoo.state_dict().items()})
    return other


def kohya_file(path: Path, layers: dict[str, dict[str, tuple[int, ...]]], alpha: float | None = None) -> Path:
    torch.manual_seed(4)
    tensors: Tensors = {}
    for name, shapes in layers.items():
        tensors |= {f"lycoris_{name}.{end}": torch.randn(shape) / 3 for end, shape in shapes.items()}
        if alpha is not None:
            tensors[f"lycoris_{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def test_where_both_are_whole_alpha_is_the_rank(tmp_path: Path) -> None:
    """LyCORIS takes no alpha there, and PEFT does."""
    zoo, base = make_base(tmp_path / "base", torch.float32)
    w1, w2 = (5, 3), (4, 4)
    path = kohya_file(tmp_path / "a.safetensors", {LINEAR: {"lokr_w1": w1, "lokr_w2": w2}}, alpha=1e10)
    adaptertool.convert(path, tmp_path / "out", to="peft", base=base)
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["alpha"]) == ("LOKR", fields["r"])
    own = {key.rpartition(".")[2]: tensor.double() for key, tensor in load(path).items()}
    found = peft_merge(zoo, tmp_path / "out")
    assert torch.equal(found["linear.weight"], zoo.linear.weight.double() + torch.kron(own["lokr_w1"], own["lokr_w2"]))


REFUSED = {
    "sizes that no factor gives": {LINEAR: {"lokr_w1": (10, 2), "lokr_w2": (2, 6)}},
    "two factors": {
        LINEAR: {"lokr_w1": (2, 2), "lokr_w2_a": (10, 2), "lokr_w2_b": (2, 6)},
        CONV: {"lokr_w1": (7, 5), "lokr_w2": (1, 1, 3, 2)},
    },
    "two ranks in one layer": {
        LINEAR: {"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 3), "lokr_w2_a": (5, 2), "lokr_w2_b": (2, 4)}
    },
    "a convolution in one dimension": {CONV1: {"lokr_w1": (2, 2), "lokr_w2": (4, 3, 3)}},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_has_no_shapes_for_is_refused_by_name(tmp_path: Path, case: str) -> None:
    _, base = make_base(tmp_path / "base", torch.float32)
    path = kohya_file(tmp_path / "a.safetensors", REFUSED[case], alpha=2)
    with pytest.raises(UnsupportedError, match=r"(?i)of (kind )?lokr"):
        adaptertool.convert(path, tmp_path / "out", to="peft", base=base)
    assert not (tmp_path / "out").exists()
