"""`sum`, `truncate` and `extract` on the command line: what they print, their exit codes, and what a failure leaves."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, load, lora_factors, main_here, snapshot, write_adapter

from adaptertool.errors import StorageError
from adaptertool.interrupts import Interrupted, interrupt
from adaptertool.tasks.sum import sum_adapters
from adaptertool.tasks.truncate import truncate

LORA, BASE, TUNED = (str(FIXTURES / name) for name in ("lora", "base", "tuned"))


def run(arguments: list[object], monkeypatch: pytest.MonkeyPatch) -> object:
    return main_here([str(argument) for argument in arguments], monkeypatch)


def test_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["sum", LORA, LORA, "-w", "0.5", "-w", "-2", "-o", out], monkeypatch) == 0
    text = capsys.readouterr().out
    assert f"sum {LORA} (weight 0.5) + {LORA} (weight -2) -> {out}" in text
    assert "exact    nothing was rounded" in text
    assert "model.layers.*.mlp.up_proj  rank 16 of 16  (4 layers)" in text
    assert run(["sum", LORA, LORA, "-w", "0.7", "-w", "0.2", "-o", out], monkeypatch) == 5
    again = ["sum", LORA, LORA, "-w", "0.7", "-w", "0.2", "-o", out, "--force"]
    assert run(again, monkeypatch) == 0
    assert "elements of B in 28 layers" in capsys.readouterr().out
    assert run([*again, "--energy", "0.9", "--json", "-q"], monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["weights"], report["cut"]) == ("sum/1", [0.7, 0.2], {"energy": "0.9"})
    assert all(one["energy"] >= 0.9 > 1 - one["error"] for one in report["layers"])


def test_truncate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["truncate", LORA, "--max-error", "0.5", "-o", tmp_path / "a", "-v"], monkeypatch) == 0
    text = capsys.readouterr().out
    assert f"truncate {LORA} --max-error 0.5 -> {tmp_path / 'a'}" in text
    assert "  model.layers.3.self_attn.k_proj  rank " in text
    assert run(["truncate", LORA, "--rank", 8, "-o", tmp_path / "b"], monkeypatch) == 0
    assert "rank 8 to 8, 28 with their bytes as they are" in capsys.readouterr().out
    assert run(["truncate", LORA, "--rank", 2, "-o", tmp_path / "c", "--dry-run"], monkeypatch) == 0
    assert "nothing is written" in capsys.readouterr().out
    assert run(["truncate", LORA, "--energy", "0.9", "-o", tmp_path / "d", "--json"], monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "truncate/1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "d"]


def test_extract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["extract", FIXTURES / "base", FIXTURES / "tuned", "--rank", 4]
    assert run([*arguments, "--leave-out", "layernorm", "-o", tmp_path / "a"], monkeypatch) == 0
    text = capsys.readouterr().out
    assert f"{FIXTURES / 'tuned'} --rank 4 -> {tmp_path / 'a'}" in text
    assert "lost     what was changed in 8 tensors" in text
    assert "model.layers.*.self_attn.k_proj.weight  rank 4  energy 0." in text
    assert "model.layers.*.input_layernorm.weight  left out  |T - W| 0." in text
    assert "model.norm.weight  saved" in text
    assert run([*arguments, "-o", tmp_path / "b", "--json", "-q", "--dtype", "bf16", "--dry-run"], monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["cut"], report["dtype"]) == ("extract/1", {"rank": 4}, "bf16")
    assert {one["how"] for one in report["tensors"]} == {"factors", "saved"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


TIES = ("sum", LORA, LORA, "--method", "ties")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["truncate", LORA, "-o", "OUT"], 2, "give one of --rank, --energy, --max-error and --ratio"),
        (["truncate", LORA, "--rank", "0", "-o", "OUT"], 2, "--rank"),
        (["truncate", LORA, "--energy", "2", "-o", "OUT"], 2, "above 0 and at most 1"),
        (["truncate", str(FIXTURES / "base"), "--rank", "1", "-o", "OUT"], 3, "is not an adapter"),
        (["extract", BASE, TUNED, "-o", "OUT"], 2, "give one of --rank, --energy and --max-error"),
        (["extract", BASE, BASE, "--rank", "1", "-o", "OUT"], 2, "do not differ"),
        (["extract", BASE, LORA, "--rank", "1", "-o", "OUT"], 3, "is an adapter already"),
        (["extract", BASE, TUNED, "--rank", "1", "--leave-out", "nothing", "-o", "OUT"], 2, "is found in no name"),
        (["sum", LORA, "-w", "1", "-w", "2", "-o", "OUT"], 2, "2 weights for 1 adapter"),
        (["sum", "-o", "OUT"], 2, "ADAPTER"),
        (["sum", LORA, LORA, "-o", LORA], 2, "overlap"),
        ([*TIES, "--density", "0.5", "--density=0.3", "-o", "OUT"], 2, "--density is one for all adapters of `sum`"),
        ([*TIES, "--density", "mlp=0.3", "-o", "OUT"], 2, "one number for all layers and adapters"),
    ],
)
def test_errors(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = str(tmp_path / "out")
    assert run([out if argument == "OUT" else argument for argument in arguments], monkeypatch) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call fails."""
    adapter = write_adapter(tmp_path / "a", {**lora_factors("x", (9, 7)), "head.weight": torch.randn(3, 3)})
    before = snapshot(tmp_path)
    for name in ("pwrite", "fsync", "rename", "truncate"):
        real, calls = getattr(os, name), 0
        for fails in range(1, 30):
            calls = 0

            def failing(*arguments: Any, real: Any = real, fails: int = fails, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == fails:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(os, name, failing)
                try:
                    truncate(adapter, tmp_path / "out", rank=2, threads=1)
                except StorageError:
                    assert snapshot(tmp_path) == before, (name, fails)
                    continue
            break
        assert calls == fails - 1, name
        assert len(load(tmp_path / "out")) == 3
        truncate(adapter, tmp_path / "out", rank=2, force=True)
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        (tmp_path / "out").rmdir()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", {k: t for n in range(9) for k, t in lora_factors(f"l.{n}", (9, 7)).items()})

    def stop(_: int) -> None:
        interrupt()

    with pytest.raises(Interrupted):
        sum_adapters([adapter, adapter], tmp_path / "out", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors("x", (9, 7)))
    with pytest.raises(Exception, match="changed since it was first read"):
        truncate(adapter, tmp_path / "out", rank=2, progress=lambda _: (adapter / "adapter_config.json").touch())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
