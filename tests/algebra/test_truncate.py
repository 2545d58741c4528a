"""truncate: the written adapter against dense float64 SVDs, and loaded by PEFT."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, lora_factors, same_bits, snapshot, write_adapter
from deltas import best, deltas
from expert_models import MODELS
from expert_models import train as train_experts
from layers import LAYERS, Attention, Zoo, make_adapter, peft_merge
from models import build
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from adaptertool.errors import NonFiniteError, OutputError, UnsupportedError, UsageError
from adaptertool.tasks.truncate import truncate


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("stabilised", [False, True])
def test_every_layer_is_the_best_of_its_rank(tmp_path: Path, balance: bool, stabilised: bool) -> None:
    zoo = Zoo()
    patterns = {"rank_pattern": {"conv2": 5, "linear": 6}, "alpha_pattern": {"embedding": 9, "conv1": 2.5}}
    adapter = make_adapter(
        tmp_path / "a", zoo, target_modules=LAYERS, r=4, use_rslora=stabilised, bias="all", **patterns
    )
    report = truncate(adapter, tmp_path / "out", rank=2, balance=balance)
    assert {one.layer: one.rank for one in report.layers} == dict.fromkeys(LAYERS, 2)
    before, after = deltas(zoo, adapter), deltas(zoo, tmp_path / "out")
    errors = {one.layer: (one.error, one.storing, one.energy) for one in report.layers}
    for layer in LAYERS:
        delta, found = before[f"{layer}.weight"], after[f"{layer}.weight"]
        wanted = best(delta, 2)
        scale = delta.norm()
        assert (found - wanted).norm() < 1e-6 * scale
        error, storing, energy = errors[layer]
        assert float((delta - wanted).norm() / scale) == pytest.approx(error, abs=1e-9)
        assert float((delta - found).norm() / scale) <= error + storing + 1e-12
        assert energy == pytest.approx(1 - error**2)
        assert 0 < storing < 1e-6
        if before.get(f"{layer}.bias") is not None:
            assert after[f"{layer}.bias"].equal(before[f"{layer}.bias"])
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (2, {})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("limit", [{"energy": "0.9"}, {"max_error": "0.3"}])
def test_each_layer_gets_the_rank_that_it_needs(tmp_path: Path, dtype: torch.dtype, limit: dict[str, str]) -> None:
    factors: dict[str, torch.Tensor] = {}
    for number, decay in enumerate((0.1, 0.5, 0.9, 1.0)):
        pair = lora_factors(f"layers.{number}.proj", (40, 30), 8)
        sizes = decay ** torch.arange(8.0)
        factors |= {
            name: (tensor * (sizes if "lora_B" in name else 1)).to(dtype).contiguous() for name, tensor in pair.items()
        }
    adapter = write_adapter(tmp_path / "a", factors, r=8, lora_alpha=12, target_modules=["proj"])
    report = truncate(adapter, tmp_path / "out", **limit)
    stored = load(tmp_path / "out")
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ModuleDict({"proj": nn.Linear(30, 40)}) for _ in range(4))
    before, after = deltas(model, adapter), deltas(model, tmp_path / "out")
    assert sorted({one.rank for one in report.layers}) != [8]
    for one in report.layers:
        delta, found = before[f"{one.layer}.weight"], after[f"{one.layer}.weight"]
        values = torch.linalg.svdvals(delta)
        tails = [float((values[rank:].square().sum() / values.square().sum()).sqrt()) for rank in range(9)]
        enough = [tail**2 <= 0.1 if "energy" in limit else tail <= 0.3 for tail in tails]
        assert one.rank == enough.index(True)
        error = float((delta - found).norm() / delta.norm())
        assert error <= one.error + one.storing + 1e-12
        assert "energy" in limit or error <= 0.3
        key = f"base_model.model.{one.layer}.lora_B.weight"
        assert stored[key].dtype == dtype
        assert stored[key].shape == (40, one.rank)


def test_full_rank_keeps_every_byte(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a", Zoo(), target_modules=LAYERS, use_rslora=True, lora_alpha=7)
    for number, limit in enumerate(({"rank": 3}, {"rank": 99}, {"max_error": 0}, {"max_error": "1e-9"})):
        report = truncate(adapter, tmp_path / str(number), **limit)  # type: ignore[arg-type]
        assert all((one.rank, one.energy, one.error, one.storing) == (3, 1, 0, 0) for one in report.layers)
        out = tmp_path / str(number)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (out / file).read_bytes() == (adapter / file).read_bytes()


def test_mixed_dtypes_saved_tensors_and_files_travel(tmp_path: Path) -> None:
    low = lora_factors("low", (9, 7), 4, torch.bfloat16)
    odd = {"odd.lora_A.weight": torch.randn(4, 5).bfloat16(), "odd.lora_B.weight": torch.randn(3, 4)}
    saved = {"head.weight": torch.randn(5, 3, dtype=torch.float64), "norm.weight": torch.randn(3).half()}
    adapter = write_adapter(tmp_path / "a", {**low, **odd, **saved}, lora_alpha=3, modules_to_save=["head", "norm"])
    (adapter / "README.md").write_text("about")
    (adapter / "adapter_model.bin").write_text("a pickle")
    report = truncate(adapter, tmp_path / "out", rank=1)
    assert "adapter_model.bin" in report.notes[-1]
    before, after = load(adapter), load(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        assert "lora_" in name or same_bits(tensor, before[name])
    assert (tmp_path / "out" / "README.md").read_text() == "about"
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["modules_to_save"]) == (1, 0.75, ["head", "norm"])
    delta = before["base_model.model.odd.lora_B.weight"] @ before["base_model.model.odd.lora_A.weight"].float()
    found = after["base_model.model.odd.lora_B.weight"] @ after["base_model.model.odd.lora_A.weight"].float()
    assert (found - best(delta, 1)).norm() < 0.02 * delta.norm()


def test_dora_keeps_its_magnitudes(tmp_path: Path) -> None:
    zoo = Zoo()
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=LAYERS, use_dora=True)
    assert "magnitudes stay" in truncate(adapter, tmp_path / "out", rank=1).notes[0]
    before, after = load(adapter), load(tmp_path / "out")
    assert sum("magnitude" in name and same_bits(after[name], before[name]) for name in after) == len(LAYERS)
    norms = peft_merge(zoo, tmp_path / "out")["linear.weight"].norm(dim=1)
    assert (norms - after["base_model.model.linear.lora_magnitude_vector"].double()).abs().max() < 1e-6


def test_multihead_attention_has_one_rank(tmp_path: Path) -> None:
    model = Attention()
    tuned = get_peft_model(
        copy.deepcopy(model), LoraConfig(target_modules=["attn", "head"], r=6, lora_alpha=5, init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path / "a")
    report = truncate(tmp_path / "a", tmp_path / "out", energy=0.8)
    ranks = {one.layer: one.rank for one in report.layers}
    assert 1 <= ranks["attn"] < 6
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out").eval()
    x = torch.randn(2, 5, 16)
    expected, found, plain = tuned.eval()(x), again(x), model.eval()(x)
    assert (found - expected).norm() < (plain - expected).norm()
    stored = load(tmp_path / "out")
    assert {t.shape[0] for name, t in stored.items() if "attn" in name and "lora_A" in name} == {ranks["attn"]}


@pytest.mark.parametrize("name", ["Qwen3MoeForCausalLM", "GptOssForCausalLM"])
def test_experts_are_cut_one_by_one(tmp_path: Path, name: str) -> None:
    fields, parameters = MODELS[name]
    model = build(name, fields)
    patterns = {"rank_pattern": {".*experts.down_proj": 5}, "alpha_pattern": {".*experts.gate_up_proj": 7}}
    adapter = train_experts(model, tmp_path / "a", target_parameters=parameters, r=4, **patterns)
    truncate(adapter, tmp_path / "out", rank=2)
    before, after = deltas(model.float(), adapter), deltas(model.float(), tmp_path / "out")
    changed = [name for name, delta in before.items() if delta.any()]
    assert len(changed) == 2 * len(parameters)
    for key in changed:
        for delta, found in zip(before[key], after[key], strict=True):
            assert (found - best(delta, 2)).norm() < 1e-5 * delta.norm()


def test_zeros_and_dependent_factors(tmp_path: Path) -> None:
    a, b = torch.randn(4, 12), torch.randn(9, 4)
    b[:, 2:] = b[:, :2]
    factors = {
        "zero.lora_A.weight": a, "zero.lora_B.weight": torch.zeros(9, 4),
        "two.lora_A.weight": a, "two.lora_B.weight": b,
        "small.lora_A.weight": a, "small.lora_B.weight": torch.randn(1, 4),
    }  # fmt: skip
    adapter = write_adapter(tmp_path / "a", {name: t.clone() for name, t in factors.items()})
    report = truncate(adapter, tmp_path / "out", energy=1)
    assert {one.layer: one.rank for one in report.layers} == {"small": 1, "two": 2, "zero": 1}
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name in ("zero", "two", "small"):
        new, old = (
            tensors[f"{prefix}{name}.lora_B.weight"] @ tensors[f"{prefix}{name}.lora_A.weight"]
            for tensors, prefix in ((stored, "base_model.model."), (factors, ""))
        )
        assert (new - old).abs().max() < 1e-5
        assert new.isfinite().all()


def test_a_factor_beyond_its_dtype_is_refused_and_fits_with_balance(tmp_path: Path) -> None:
    a, b = torch.randn(4, 5).half() * 4096, torch.randn(3, 4).half() * 4096
    adapter = write_adapter(tmp_path / "a", {"x.lora_A.weight": a, "x.lora_B.weight": b})
    with pytest.raises(NonFiniteError, match=r"x at rank 1; with --balance it may fit: .*lora_B.* range of F16"):
        truncate(adapter, tmp_path / "out", rank=1)
    truncate(adapter, tmp_path / "out", rank=1, balance=True)


def test_threads_and_runs_give_the_same_bytes(tmp_path: Path) -> None:
    factors = {name: t for n in range(9) for name, t in lora_factors(f"l.{n}.x", (300, 200), 8).items()}
    adapter = write_adapter(tmp_path / "a", factors, r=8)
    for number in (1, 3):
        truncate(adapter, tmp_path / str(number), energy=0.7, threads=number)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "3")


def test_dry_run_tells_all_and_writes_nothing(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors("x", (9, 7)))
    dry = truncate(adapter, tmp_path / "out", energy=0.7, dry_run=True)
    assert list(tmp_path.iterdir()) == [adapter]
    real = truncate(adapter, tmp_path / "out", energy=0.7)
    assert dry.layers == real.layers
    assert (dry.bytes_written, real.bytes_written > 0) == (0, True)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({}, "give one of rank, energy, max_error and ratio"),
        ({"rank": 2, "energy": 0.5}, "give one of rank"),
        ({"rank": 0}, "rank must be a whole number"),
        ({"rank": True}, "rank must be a whole number"),
        ({"energy": 0}, "above 0 and at most 1"),
        ({"energy": "1.01"}, "above 0 and at most 1"),
        ({"energy": "nan"}, "not a finite number"),
        ({"max_error": -0.1}, "from 0 to below 1"),
        ({"max_error": 1}, "from 0 to below 1"),
        ({"max_error": "x"}, "not a number"),
    ],
)
def test_limits_that_make_no_sense(tmp_path: Path, limit: dict[str, Any], message: str) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors("x", (9, 7)))
    with pytest.raises(UsageError, match=message):
        truncate(adapter, tmp_path / "out", **limit)
    assert not (tmp_path / "out").exists()


def test_inputs_that_are_refused(tmp_path: Path) -> None:
    factors = lora_factors("x", (9, 7))
    adapter = write_adapter(tmp_path / "a", factors)
    with pytest.raises(UsageError, match="overlap"):
        truncate(adapter, adapter, rank=1)
    with pytest.raises(UsageError, match="is a directory"):
        truncate(adapter, tmp_path / "out.safetensors", rank=1)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(OutputError, match="exists"):
        truncate(adapter, tmp_path / "there", rank=1)
    saved = write_adapter(tmp_path / "b", {"head.weight": torch.randn(3, 3)})
    with pytest.raises(UsageError, match="no factors to truncate"):
        truncate(saved, tmp_path / "out", rank=1)
    for number, (high, wide) in enumerate(((0, 7), (9, 0))):
        empty = {"x.lora_A.weight": torch.ones(4, wide), "x.lora_B.weight": torch.ones(high, 4)}
        with pytest.raises(UnsupportedError, match="factors of no elements"):
            truncate(write_adapter(tmp_path / "empty" / str(number), empty), tmp_path / "out", rank=1)
    bad = {name: tensor.clone() for name, tensor in factors.items()}
    bad["x.lora_B.weight"][3, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"x\.lora_B\.weight holds nan at element 13"):
        truncate(write_adapter(tmp_path / "c", bad), tmp_path / "out", rank=1)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "there", "empty"}


@pytest.mark.parametrize("limit", [{"rank": 1}, {"energy": 1}, {"max_error": 0}])
def test_what_cancels_takes_nothing_along(tmp_path: Path, limit: dict[str, Any]) -> None:
    one, other = torch.randn(6), torch.randn(6)
    b = torch.stack([1e17 * one, -1e17 * one, other], 1)
    a = torch.randn(2, 5)[[0, 0, 1]]
    factors = {"m.q.lora_A.weight": a, "m.q.lora_B.weight": b}
    (told,) = truncate(write_adapter(tmp_path / "a", factors, r=3), tmp_path / "out", **limit).layers
    stored = load(tmp_path / "out")
    found = stored[f"{PREFIX}m.q.lora_B.weight"].double() @ stored[f"{PREFIX}m.q.lora_A.weight"].double()
    wanted = torch.outer(other.double(), a[2].double())
    assert (found - wanted).norm() <= (told.error + told.storing + 1e-15) * wanted.norm()
    assert told.error + told.storing < 1e-6
