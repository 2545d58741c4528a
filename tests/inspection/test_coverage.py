"""Which layers of a base an adapter covers, and how much it can hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, load, lora_factors, write_adapter, write_checkpoint
from inspected import UP, Q, adapter_of

import adaptertool
from adaptertool.errors import UsageError

# Coverage and capacity.


def test_coverage() -> None:
    report = adaptertool.inspect(FIXTURES / "rslora", FIXTURES / "base")
    base, facts = load(FIXTURES / "base"), adapter_of(report)
    assert sum(one.base or 0 for one in facts.coverage) == sum(tensor.numel() for tensor in base.values())
    adapted = sum(base[f"{module.name.removesuffix('.weight')}.weight"].numel() for module in facts.modules)
    assert sum(one.adapted or 0 for one in facts.coverage) == adapted
    alone = adapter_of(adaptertool.inspect(FIXTURES / "rslora"))
    assert [one.adapted for one in alone.coverage] == [one.adapted for one in facts.coverage if one.modules]
    assert all(one.base is None for one in alone.coverage)
    assert sum(one.trainable for one in facts.coverage) == facts.capacity.trainable


@pytest.mark.parametrize(
    ("modules", "flagged"),
    [
        ([Q], True),
        (["transformer.h.0.attn.c_attn"], True),
        (["layers.3.attention.wq", "lm_head"], True),
        ([Q, UP], False),
        ([UP], False),
        ([Q, "model.layers.0.mixer.in_proj"], False),  # of a family that is not known here
        ([Q, "model.layers.0.mlp.experts.3.w1"], False),
    ],
    ids=str,
)
def test_attention_only_is_flagged(tmp_path: Path, modules: list[str], flagged: bool) -> None:
    factors = {key: tensor for module in modules for key, tensor in lora_factors(module, (8, 6)).items()}
    report = adaptertool.inspect(write_adapter(tmp_path / "a", factors))
    assert [line.startswith("attention-only") for line in report.findings] == [True] * flagged


def test_attention_only_needs_a_base_with_something_else(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (8, 6)))
    for other, flagged in ((UP, True), ("model.layers.0.mixer.in_proj", False)):
        tensors = {f"{Q}.weight": torch.randn(8, 6), f"{other}.weight": torch.randn(8, 6)}
        base = write_checkpoint(tmp_path / other, tensors)
        assert bool(adaptertool.inspect(adapter, base).findings) is flagged


def test_saved_mlp_is_no_attention_only(tmp_path: Path) -> None:
    tensors = {**lora_factors(Q, (8, 6)), f"{UP}.weight": torch.randn(8, 6)}
    assert not adaptertool.inspect(write_adapter(tmp_path / "a", tensors, modules_to_save=["up_proj"])).findings


def test_experts_left_out(tmp_path: Path) -> None:
    expert = "model.layers.0.mlp.experts.0.up_proj"
    tensors = {
        f"{Q}.weight": torch.randn(8, 6),
        f"{UP}.weight": torch.randn(8, 6),
        f"{expert}.weight": torch.ones(16, 6),
    }
    base = write_checkpoint(tmp_path / "base", tensors)
    adapter = write_adapter(tmp_path / "a", {**lora_factors(Q, (8, 6)), **lora_factors(UP, (8, 6))})
    [finding] = adaptertool.inspect(adapter, base).findings
    assert finding.startswith("experts are not adapted, and hold 50% of the base's parameters")


def test_capacity_by_hand(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors(UP, (12, 8)))
    capacity = adapter_of(adaptertool.inspect(adapter)).capacity
    assert (capacity.trainable, capacity.bits) == (80, 160)
    assert capacity.compute == pytest.approx((2 * 96 + 3 * 4 * 20) / (3 * 96))
    assert (capacity.needed, capacity.load, capacity.verdict) == (None, None, None)
    said = {n: adapter_of(adaptertool.inspect(adapter, episodes=n)).capacity for n in (160, 161, 80)}
    assert [(c.load, c.verdict) for c in said.values()] == [(1.0, "enough"), (161 / 160, "short"), (0.5, "enough")]
    tokens = adapter_of(adaptertool.inspect(adapter, tokens=100, nats_per_token=math.log(2))).capacity
    assert tokens.needed == pytest.approx(100) and tokens.load == pytest.approx(100 / 160)
    short = adaptertool.inspect(adapter, episodes=1600)
    assert short.findings[-1].startswith("capacity: the data has 10 times the bits")


def test_large_layers_cost_two_thirds(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors(UP, (4096, 4096), 1), r=1)
    assert adapter_of(adaptertool.inspect(adapter, spectra=False)).capacity.compute == pytest.approx(2 / 3, rel=1e-3)


def test_rules_of_thumb() -> None:
    plain, stabilised = (adaptertool.inspect(FIXTURES / name).rules for name in ("lora", "rslora"))
    assert "about 10 times that of full fine-tuning" in plain[0] and plain[0] == stabilised[0]
    assert plain[1].startswith("scale: alpha/r is 2;") and "rsLoRA's alpha/√r would be 5.657" in plain[1]
    config = json.loads((FIXTURES / "rslora" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / math.sqrt(config["r"])
    assert stabilised[1].startswith(f"scale: rsLoRA's alpha/√r is {scale:.4g}")


@pytest.mark.parametrize(
    "options",
    [{"tokens": 5}, {"nats_per_token": 2}, {"episodes": 0}, {"episodes": math.nan}, {"tokens": -1, "nats_per_token": 1},
     {"tokens": 5, "nats_per_token": 2, "episodes": 3}, {"tokens": math.inf, "nats_per_token": 1}],
    ids=str,
)  # fmt: skip
def test_numbers_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        adaptertool.inspect(FIXTURES / "lora", **options)
