"""`drift` on quantised bases and merges, and for runs on a base in 4 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import load, lora_factors, main_here, write_adapter, write_checkpoint
from quantised_bases import FORMATS, Q, X

import adaptertool as library

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


@pytest.mark.parametrize("name", ["FP8, blocks", "NF4", "GPTQ"])
def test_a_quantised_base_is_read_as_its_numbers(tmp_path: Path, name: str) -> None:
    """As of a dense base with the very numbers, in float32, which holds them nearly; and its own merge is expected."""
    made = FORMATS[name]()
    plain = {f"{Q}.weight": torch.randn(8, 6).bfloat16()}
    config = CONFIG | {"quantization_config": made.config}
    base = write_checkpoint(tmp_path / "base", plain | dict(made.tensors), config=config)
    shape = (len(made.exact), len(made.exact[0]))
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, shape))
    report = library.drift(base, [adapter], probe=4)
    (module,) = report.modules
    assert report.ok and module.weight.rel_error < 2.0**-8
    library.merge(base, [adapter], tmp_path / "out", dtype="bf16")
    assert library.drift(base, [adapter], merged=tmp_path / "out", probe=4).rel_error == report.rel_error


def test_a_merge_that_stays_quantised_is_said_to_be_one(tmp_path: Path) -> None:
    """It is right, and further off than numbers are rounded: a suspicion of which the reason is told."""
    made = FORMATS["FP8, blocks"]()
    config = CONFIG | {"quantization_config": made.config}
    base = write_checkpoint(tmp_path / "base", dict(made.tensors), config=config)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (len(made.exact), len(made.exact[0]))))
    out = tmp_path / "out"
    library.merge(base, [adapter], out, quantise="keep")
    report = library.drift(base, [adapter], merged=out, probe=4)
    assert not report.ok and library.verify(out, base, [adapter]).ok
    assert any(note.startswith(f"{out} is quantised, and the rounding to its codes counts") for note in report.notes)


def test_both_runs(tmp_path: Path) -> None:
    """A merge into the base in 4 bits is near the run on that, and as far from the run on the dense one as they are
    apart; a dense merge the reverse."""
    dense = {f"{X}.weight": (torch.randn(96, 128) * 0.02).bfloat16()}
    base = write_checkpoint(tmp_path / "base", dense, config=CONFIG)
    factors = lora_factors(X, (96, 128))
    adapter = write_adapter(tmp_path / "adapter", factors)
    library.merge(base, [adapter], tmp_path / "plain")
    library.merge(base, [adapter], tmp_path / "rounded", as_trained="nf4")
    a, b = (factors[f"{X}.lora_{one}.weight"].double() for one in "AB")
    exact = dense[f"{X}.weight"].double() + 2 * b @ a
    for merged in (None, tmp_path / "rounded"):
        report = library.drift(base, [adapter], merged=merged, as_trained="nf4", probe=2)
        assert report.ok and report.rel_error is not None and report.rel_error < 2.0**-8
        stored = load(tmp_path / "rounded")[f"{X}.weight"].double()
        assert report.from_dense == pytest.approx(float((stored - exact).norm() / exact.norm()), rel=1e-9)
    other = library.drift(base, [adapter], merged=tmp_path / "plain", as_trained="nf4", probe=2)
    assert not other.ok and other.from_dense is not None and other.from_dense < 2.0**-8 < other.rel_error


def test_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{X}.weight": torch.randn(8, 16).bfloat16()}, config=CONFIG)
    adapter = write_adapter(tmp_path / "a", lora_factors(X, (8, 16)), base_model_name_or_path="unsloth/Some-bnb-4bit")
    assert main_here(["drift", str(base), str(adapter), "--as-trained", "nf4", "--probe", "1"], monkeypatch) == 0
    assert "W is the base as nf4 of bitsandbytes has it" in capsys.readouterr().out
    assert main_here(["merge", str(base), str(adapter), "-o", str(tmp_path / "out")], monkeypatch) == 0
    assert "which by its name is in 4 bits" in capsys.readouterr().err
