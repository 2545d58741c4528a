"""sum --base: what DoRA changes, extracted; against PEFT's merges in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adaptertool, load, lora_factors, snapshot, write_adapter, write_checkpoint
from deltas import best, close, deltas, expected
from layers import LAYERS, Zoo, make_adapter, make_base

from adaptertool.errors import AdapterToolError, MismatchError, UnsupportedError, UsageError
from adaptertool.output.integrity import check_files
from adaptertool.tasks.sum import sum_adapters

WEIGHTS = [0.7, -1.3]


def made(tmp_path: Path) -> tuple[Zoo, Path, list[Path]]:
    """DoRA on all kinds of layers, and LoRA on some of them and on one more."""
    zoo, base = make_base(tmp_path / "base")
    dora = make_adapter(tmp_path / "dora", zoo, target_modules=LAYERS[:-1], use_dora=True, r=3)
    lora = make_adapter(tmp_path / "lora", zoo, target_modules=["linear", "turned", "conv3"], r=2, lora_alpha=7)
    return zoo, base, [dora, lora]


def test_all_of_it(tmp_path: Path) -> None:
    zoo, base, adapters = made(tmp_path)
    report = sum_adapters(adapters, tmp_path / "out", weights=WEIGHTS, base=base, rank=1000)
    assert close(deltas(zoo, tmp_path / "out"), expected(zoo, adapters, WEIGHTS), 1e-6)
    assert max(one.error for one in report.layers) < 1e-6
    assert not any("magnitude" in name for name in load(tmp_path / "out" / "adapter_model.safetensors"))
    manifest = json.loads((tmp_path / "out" / "adaptertool.manifest.json").read_text())
    assert manifest["recipe"]["base"] == "base"
    assert set(manifest["inputs"]["sources"][2]) >= {"config.json", "model.safetensors"}
    assert check_files(tmp_path / "out").ok


@pytest.mark.parametrize("cut", [{"rank": 2}, {"energy": "0.8"}])
def test_the_best_part_of_it(tmp_path: Path, cut: dict[str, Any]) -> None:
    zoo, base, adapters = made(tmp_path)
    report = sum_adapters(adapters, tmp_path / "out", weights=WEIGHTS, base=base, **cut)
    wanted, found = expected(zoo, adapters, WEIGHTS), deltas(zoo, tmp_path / "out")
    for one in report.layers:
        delta = wanted[f"{one.layer}.weight"]
        least = ((delta - best(delta, one.rank)).norm() / delta.norm()).item()
        off = ((delta - found[f"{one.layer}.weight"]).norm() / delta.norm()).item()
        assert off == pytest.approx(one.error, rel=1e-4, abs=1e-6) == pytest.approx(least, rel=1e-4, abs=1e-6)
        if "energy" in cut:
            assert one.energy >= 0.8 - 1e-6
            assert one.rank == 1 or ((delta - best(delta, one.rank - 1)).norm() / delta.norm()).item() ** 2 > 0.2
    again = sum_adapters(adapters, tmp_path / "again", weights=WEIGHTS, base=base, threads=1, **cut)
    assert again.layers == report.layers
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "out")


def test_what_is_refused(tmp_path: Path) -> None:
    _, base, adapters = made(tmp_path)
    fused = write_checkpoint(tmp_path / "other", {"x.weight": load(base)["linear.weight"][:3]})
    cases: list[tuple[dict[str, Any], type[AdapterToolError], str]] = [
        ({}, UnsupportedError, "--base"),
        ({"base": base}, UsageError, "give rank or energy"),
        ({"base": base, "rank": 2, "method": "ties_svd", "density": 1}, UsageError, "no method but cat or svd"),
        ({"base": fused, "rank": 2}, MismatchError, "linear"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            sum_adapters(adapters, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_a_base_that_lora_does_not_need_changes_nothing(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"x.weight": torch.randn(12, 10)})
    adapter = write_adapter(tmp_path / "a", lora_factors("x", (12, 10)))
    for name, more in {"with": ["--base", base], "without": []}.items():
        done = adaptertool("sum", adapter, "--rank", 2, "-o", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
    both = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("with", "without")]
    assert both[0] == both[1]
