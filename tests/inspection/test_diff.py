"""diff: two checkpoints tensor by tensor, against dense float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import quantised_bases
import torch
from conftest import FIXTURES, load, lora_factors, main_here, snapshot, write_adapter, write_checkpoint

import adaptertool
from adaptertool.errors import InputError
from adaptertool.inspection import diff as comparison
from adaptertool.reports.diff import TensorDiff
from adaptertool.tasks.diff import diff


def differing(folder: Path, a: dict[str, Any], b: dict[str, Any], **options: Any) -> dict[str, TensorDiff]:
    report = diff(
        write_checkpoint(folder / "a", a), write_checkpoint(folder / "b", b, shards=min(2, len(b))), **options
    )
    assert report.equal == (not report.tensors) and report.same + len(report.tensors) == len({*a, *b})
    return {one.name: one for one in report.tensors}


def test_of_one_checkpoint_all_is_equal(tmp_path: Path) -> None:
    report = adaptertool.diff(FIXTURES / "base", FIXTURES / "base")
    assert (report.equal, report.same, report.tensors) == (True, len(load(FIXTURES / "base")), ())
    odd = {
        "a": torch.tensor([math.nan, -0.0, math.inf]),
        "e": torch.zeros(0, 3),
        "s": torch.tensor(1),
        "b": torch.ones(3) > 0,
    }
    assert not differing(tmp_path, odd, odd)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("threads", [1, 3])
def test_figures_are_those_of_dense_float64(
    tmp_path: Path, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_ELEMENTS", 1000)
    a = {name: torch.randn(60, 47).to(dtype) for name in "pqr"}
    b = {name: tensor.clone() for name, tensor in a.items()}
    b["p"] += torch.randn(60, 47).to(dtype) / 8
    b["q"][30:32, 5:9] *= 1.5  # within one block only
    found = differing(tmp_path, a, b, threads=threads)
    assert found.keys() == {"p", "q"}
    for name, one in found.items():
        delta = b[name].double() - a[name].double()
        assert one.elements == int((a[name] != b[name]).sum()) and one.share == one.elements / delta.numel()
        assert one.norm == pytest.approx(float(delta.norm()), rel=1e-12)
        assert one.rel_error == pytest.approx(float(delta.norm() / a[name].double().norm()), rel=1e-12)
        assert one.max_abs == float(delta.abs().max())
        assert (one.status, one.not_finite, one.stable_rank) == ("changed", 0, None)
    ours, theirs = (tensors["q"][30:32, 5:9] for tensors in (a, b))
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert found["q"].max_ulp == int((theirs.contiguous().view(word) - ours.contiguous().view(word)).abs().max())


def test_the_same_figures_whatever_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_ELEMENTS", 100)
    a = write_checkpoint(tmp_path / "a", {"x.weight": torch.randn(80, 90)})
    b = write_checkpoint(tmp_path / "b", {"x.weight": torch.randn(80, 90)})
    before = snapshot(tmp_path)
    assert len({diff(a, b, threads=threads, ranks=True).tensors for threads in (1, 2, 5)}) == 1
    assert snapshot(tmp_path) == before


def test_what_the_headers_tell(tmp_path: Path) -> None:
    a = {
        "gone": torch.ones(2),
        "shape": torch.ones(2, 3),
        "kind": torch.ones(3),
        "same": torch.ones(2),
        "int": torch.arange(3),
    }
    b = {
        "shape": torch.ones(3, 2),
        "kind": torch.ones(3).half(),
        "same": torch.ones(2),
        "int": torch.ones(3),
        "new": torch.ones(1),
    }
    found = differing(tmp_path, a, b)
    assert {name: (one.status, one.a, one.b) for name, one in found.items()} == {
        "gone": ("missing", "F32 2", None),
        "shape": ("shape-changed", "F32 2×3", "F32 3×2"),
        "kind": ("dtype-changed", "F32 3", "F16 3"),
        "int": ("dtype-changed", "I64 3", "F32 3"),
        "new": ("extra", None, "F32 1"),
    }
    assert (found["kind"].elements, found["kind"].max_abs, found["kind"].max_ulp) == (0, 0, None)
    assert found["int"].elements is None
    assert list(found)[-1] == "new"


def test_numbers_of_two_dtypes_are_compared(tmp_path: Path) -> None:
    a = torch.tensor([1.0, 1 + 2**-20, math.nan, 3.0])
    found = differing(tmp_path, {"x": a}, {"x": a.bfloat16()})["x"]
    assert (found.elements, found.max_abs, found.max_ulp, found.not_finite) == (1, 2**-20, None, 0)


def test_bits_count(tmp_path: Path) -> None:
    a = {
        "zero": torch.zeros(3),
        "nan": torch.tensor([1.0, math.nan, 2.0]),
        "int": torch.arange(9),
        "u8": torch.arange(9).byte(),
    }
    b = {"zero": -torch.zeros(3), "nan": torch.tensor([1.0, 5.0, math.inf]), "int": a["int"] + 1, "u8": a["u8"] % 8}
    found = differing(tmp_path, a, b, ranks=True)
    zero, nan = found["zero"], found["nan"]
    assert (zero.elements, zero.max_abs, zero.max_ulp, zero.norm, zero.rel_error) == (3, 0, 0, 0, None)
    assert (nan.elements, nan.not_finite, nan.max_abs, nan.rel_error) == (2, 2, 0, 0)
    assert (found["int"].elements, found["int"].share, found["int"].norm) == (9, 1, None)
    assert found["u8"].elements == 1


def test_the_ends_of_float64(tmp_path: Path) -> None:
    most = torch.full((4, 4), 1.7e308, dtype=torch.float64)
    found = differing(tmp_path, {"x": most}, {"x": -most}, ranks=True)["x"]
    assert (found.norm, found.max_abs, found.rel_error) == (None, None, None)
    assert found.max_ulp is not None and found.max_ulp > 2**63
    json.dumps([found.max_ulp, found.stable_rank], allow_nan=False)


def test_ranks_of_the_change(tmp_path: Path) -> None:
    left, right = (torch.linalg.qr(torch.randn(size, 40, dtype=torch.float64))[0] for size in (300, 200))
    a = {
        "few.weight": torch.randn(300, 200).double(),
        "many.weight": torch.zeros(300, 200).double(),
        "v": torch.ones(9),
    }
    values = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    b = {
        "few.weight": a["few.weight"] + (left[:, :3] * values) @ right[:, :3].T,
        "many.weight": torch.randn(300, 200).double(),
        "v": torch.zeros(9),
    }
    found = differing(tmp_path, a, b, ranks=True)
    shares = values / 7
    assert found["few.weight"].stable_rank == pytest.approx(21 / 16)
    assert found["few.weight"].effective_rank == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())))
    spectrum = torch.linalg.svdvals(b["many.weight"])
    shares = spectrum / spectrum.sum()
    stable = float(spectrum.square().sum() / spectrum[0] ** 2)
    assert found["many.weight"].stable_rank == pytest.approx(stable, rel=0.02)
    effective = found["many.weight"].effective_rank
    assert effective is not None and 60 < effective <= float(torch.exp(-(shares * shares.log()).sum()))
    assert found["v"].stable_rank is None


def test_diff_and_inspect_tell_the_same_ranks(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors("x", (60, 40), rank=8), r=8)
    base = write_checkpoint(tmp_path / "base", {"x.weight": torch.zeros(60, 40).double()})
    adaptertool.merge(base, [adapter], tmp_path / "merged")
    found = {one.name: one for one in diff(base, tmp_path / "merged", ranks=True).tensors}["x.weight"]
    facts = adaptertool.inspect(adapter).adapter
    assert facts is not None and facts.modules[0].spectrum is not None
    spectrum = facts.modules[0].spectrum
    assert found.effective_rank == pytest.approx(spectrum.entropy_rank, rel=1e-6)
    assert found.stable_rank == pytest.approx(spectrum.stable_rank, rel=1e-6)


def test_adapters(tmp_path: Path) -> None:
    factors = lora_factors("x", (9, 7))
    a, b = write_adapter(tmp_path / "a", factors), write_adapter(tmp_path / "b", factors, lora_alpha=2)
    report = diff(a, b)
    assert report.equal
    assert report.notes == ("adapter_config.json differs: lora_alpha",)
    write_checkpoint(b, {"x": torch.ones(1)})
    with pytest.raises(InputError, match="an adapter and a checkpoint"):
        diff(a, b)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = str(FIXTURES / "base"), str(FIXTURES / "tuned")
    assert main_here(["diff", base, base], monkeypatch) == 0
    assert "39 the same bits\n" in capsys.readouterr().out
    assert main_here(["diff", base, tuned, "--ranks"], monkeypatch) == 1
    text = capsys.readouterr().out
    assert f"diff {base} {tuned}: DIFFERENT" in text
    assert "  model.layers.*.mlp.up_proj.weight  changed  in 0." in text and "(4 tensors, the one that changed" in text
    assert main_here(["diff", base, tuned, "-v"], monkeypatch) == 1
    assert "  model.layers.3.mlp.up_proj.weight  changed" in capsys.readouterr().out
    assert main_here(["diff", base, tuned, "--json", "-q"], monkeypatch) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["equal"], len(report["tensors"])) == ("diff/1", False, 39)
    assert main_here(["diff", base, str(tmp_path / "none")], monkeypatch) == 3
    assert main_here(["diff", base], monkeypatch) == 2
    assert main_here(["diff", base, ""], monkeypatch) == 2


def test_control_characters_in_names_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    a = write_checkpoint(tmp_path / "a", {"x\x1b[31m": torch.ones(2), "y": torch.ones(1)})
    b = write_checkpoint(tmp_path / "b", {"x\x1b[31m": torch.zeros(2), "z": torch.ones(1)})
    assert main_here(["diff", str(a), str(b)], monkeypatch) == 1
    text = capsys.readouterr().out
    assert "\x1b" not in text and "1 only in A, 1 only in B" in text


def test_two_quantised_checkpoints(tmp_path: Path) -> None:
    """Their numbers are compared, whatever the formats; the same codes are no difference."""
    one, other = quantised_bases.FORMATS["FP8, blocks"](), quantised_bases.FORMATS["NF4"]()
    paths = []
    for name, made in (("a", one), ("same", one), ("b", other)):
        config = {"model_type": "llama", "quantization_config": made.config}
        paths.append(write_checkpoint(tmp_path / name, dict(made.tensors), config=config))
    assert adaptertool.diff(paths[0], paths[1]).equal
    (found,) = adaptertool.diff(paths[0], paths[2]).tensors
    apart = [v - w for rows in zip(one.exact, other.exact, strict=True) for v, w in zip(*rows, strict=True)]
    assert found.name == one.name and found.max_abs == pytest.approx(float(max(map(abs, apart))))
    assert found.norm == pytest.approx(float(sum(value**2 for value in apart)) ** 0.5)
