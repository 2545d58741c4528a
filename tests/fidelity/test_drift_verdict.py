"""The verdict of drift: rounding explains all that honest merges do, and none of the planted faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, lora_factors, write_adapter, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from one_kind import write
from safetensors.torch import load_file

import adaptertool
from adaptertool.errors import MismatchError, NonFiniteError, UnsupportedError
from adaptertool.reports.drift import DriftReport

Q = "model.layers.0.self_attn.q_proj"
SHAPE = (96, 128)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]

Merge = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]  # W, A, B, s -> W', any dtype


def case(
    folder: Path, dtype: torch.dtype, rank: int, size: float, factor_dtype: torch.dtype = torch.float32
) -> tuple[Path, Path]:
    factors = lora_factors(Q, SHAPE, rank=rank, dtype=torch.float32)
    factors[f"{Q}.lora_B.weight"] *= size
    factors = {name: tensor.to(factor_dtype) for name, tensor in factors.items()}
    base = write_checkpoint(folder / "base", {f"{Q}.weight": (torch.randn(SHAPE) / 8).to(dtype)})
    return base, write_adapter(folder / "a", factors, r=rank, lora_alpha=2 * rank)


def judged(folder: Path, base: Path, adapter: Path, merge: Merge) -> DriftReport:
    weight = load_file(base / "model.safetensors")[f"{Q}.weight"]
    a, b = load_file(adapter / "adapter_model.safetensors").values()
    out = write_checkpoint(folder / "out", {f"{Q}.weight": merge(weight, a, b, 2.0).to(weight.dtype).contiguous()})
    return adaptertool.drift(base, [adapter], merged=out)


HONEST: dict[str, Merge] = {
    "float32": lambda w, a, b, s: w.float() + s * (b.float() @ a.float()),
    "float64": lambda w, a, b, s: w.double() + s * (b.double() @ a.double()),
    "delta rounded first": lambda w, a, b, s: w + (s * (b.float() @ a.float())).to(w.dtype),
    "factors rounded first": lambda w, a, b, s: w.float() + s * (b.to(w.dtype).float() @ a.to(w.dtype).float()),
    "all in the storage dtype": lambda w, a, b, s: w + s * (b.to(w.dtype) @ a.to(w.dtype)),
    "scale on one factor": lambda w, a, b, s: w + ((s * b).to(w.dtype) @ a.to(w.dtype)),
}


@pytest.mark.long("recipe")
@pytest.mark.parametrize("recipe", HONEST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_merges_are_expected(tmp_path: Path, recipe: str, dtype: torch.dtype) -> None:
    for number, (rank, size) in enumerate([(1, 1.0), (8, 0.03), (8, 1e-3), (64, 3.0), (16, 1e-5)]):
        folder = tmp_path / str(number)
        report = judged(folder, *case(folder, dtype, rank, size), HONEST[recipe])
        assert report.verdict == "expected" and report.ok, (rank, size, report.modules[0].reasons)


def rows_swapped(w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, s: float) -> torch.Tensor:
    merged = w.float() + s * (b @ a)
    merged[[3, 4]] = merged[[4, 3]]
    return merged


FAULTS: dict[str, Merge] = {
    "not applied": lambda w, _a, _b, _s: w,
    "applied twice": lambda w, a, b, s: w.float() + 2 * s * (b @ a),
    "negated": lambda w, a, b, s: w.float() - s * (b @ a),
    "no scale": lambda w, a, b, _s: w.float() + b @ a,
    "a tenth too much": lambda w, a, b, s: w.float() + 1.1 * s * (b @ a),
    "rank-stabilised": lambda w, a, b, s: w.float() + s * len(a) ** 0.5 * (b @ a),
    "one direction lost": lambda w, a, b, s: w.float() + s * (b[:, 1:] @ a[1:]),
    "rows swapped": rows_swapped,
    "rows shifted": lambda w, a, b, s: w.float() + s * (b.roll(1, 0) @ a),
    "another base": lambda w, a, b, s: w.float() * 1.05 + s * (b @ a),
}


@pytest.mark.long("fault")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 0.03])
def test_planted_faults_are_suspect(tmp_path: Path, fault: str, dtype: torch.dtype, size: float) -> None:
    report = judged(tmp_path, *case(tmp_path, dtype, 8, size), FAULTS[fault])
    assert report.verdict == "suspect" and not report.ok and report.modules[0].reasons


@pytest.mark.parametrize("fault", ["not applied", "applied twice", "negated", "no scale", "a tenth too much"])
def test_faults_below_the_rounding_of_the_weight(tmp_path: Path, fault: str) -> None:
    """The update is smaller than half an ulp of most weights: what is left of it tells all the same."""
    base, adapter = case(tmp_path, torch.bfloat16, 8, 2e-3)
    found = judged(tmp_path, base, adapter, FAULTS[fault]).modules[0]
    assert found.weight.delta_size is not None and found.weight.delta_size < 2.0**-8
    assert found.verdict == "suspect" and found.weight.expected and not found.weight.survival_expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    factor_dtype=st.sampled_from(DTYPES),
    rank=st.integers(1, 40),
    size=st.floats(1e-5, 10),
    spread=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_rounding_explains_all_paths(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: torch.dtype,
    factor_dtype: torch.dtype,
    rank: int,
    size: float,
    spread: float,
    seed: int,
) -> None:
    """spread: of the magnitudes of rows and columns, as trained weights have it."""
    torch.manual_seed(seed)
    folder = tmp_path_factory.mktemp("case")
    weight = torch.randn(SHAPE) / 8 * torch.exp(spread * torch.randn(SHAPE[0], 1)) / torch.exp(torch.tensor(spread))
    base = write_checkpoint(folder / "base", {f"{Q}.weight": weight.to(dtype)})
    pair = []
    for name in "ab":
        factors = lora_factors(Q, SHAPE, rank=rank)
        factors[f"{Q}.lora_B.weight"] *= size
        factors[f"{Q}.lora_A.weight"] *= torch.exp(spread / 2 * torch.randn(SHAPE[1]))
        factors = {key: tensor.to(factor_dtype) for key, tensor in factors.items()}
        pair.append(write_adapter(folder / name, factors, r=rank, lora_alpha=2 * rank))
    found = adaptertool.drift(base, pair).modules[0]
    assert found.verdict == "expected", found.reasons
    for distance in found.outputs:  # and the model is not idle: it lies close above what is measured
        assert distance.explained is not None and distance.rel_error is not None
        if distance.against == "exact" and spread == 0 and dtype != torch.float32:
            assert distance.explained < 4 * distance.rel_error


@pytest.mark.parametrize("name", ["lora", "rslora"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_trained_adapters(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted((FIXTURES / "base").glob("*.safetensors")):
        tensors |= load_file(file)
    base = write_checkpoint(tmp_path / "base", {key: tensor.to(dtype) for key, tensor in tensors.items()})
    adaptertool.merge(base, [FIXTURES / name], tmp_path / "out", precision="fast")
    report = adaptertool.drift(base, [FIXTURES / name], merged=tmp_path / "out")
    assert report.verdict == "expected" and report.merged == str(tmp_path / "out")
    other = "rslora" if name == "lora" else "lora"
    adaptertool.merge(base, [FIXTURES / other], tmp_path / "wrong")
    report = adaptertool.drift(base, [FIXTURES / name], merged=tmp_path / "wrong")
    assert report.verdict == "suspect" and {m.verdict for m in report.modules} == {"suspect"}


def test_a_merge_in_a_wider_dtype(tmp_path: Path) -> None:
    base, adapter = case(tmp_path, torch.bfloat16, 8, 1e-3)
    weight = load_file(base / "model.safetensors")[f"{Q}.weight"]
    a, b = load_file(adapter / "adapter_model.safetensors").values()
    wide = write_checkpoint(tmp_path / "wide", {f"{Q}.weight": weight.float() + 2 * (b @ a)})
    found = adaptertool.drift(base, [adapter], merged=wide).modules[0]
    assert found.dtype == "F32" and found.verdict == "expected" and found.weight.survival == pytest.approx(1, abs=1e-4)


def test_candidates_that_do_not_fit(tmp_path: Path) -> None:
    base, adapter = case(tmp_path, torch.bfloat16, 8, 1.0)
    for tensors, error, match in (
        ({"model.layers.1.self_attn.q_proj.weight": torch.zeros(SHAPE)}, MismatchError, "nearest there"),
        ({f"{Q}.weight": torch.zeros(SHAPE[::-1])}, MismatchError, "but must be"),
        ({f"{Q}.weight": torch.zeros(SHAPE, dtype=torch.int32)}, UnsupportedError, "can be judged"),
    ):
        with pytest.raises(error, match=match):
            adaptertool.drift(base, [adapter], merged=write_checkpoint(tmp_path / "out", tensors))
    broken = write_checkpoint(tmp_path / "out", {f"{Q}.weight": torch.full(SHAPE, math.nan)})
    with pytest.raises(NonFiniteError, match="holds NaN"):
        adaptertool.drift(base, [adapter], merged=broken)


def test_rotations_of_float64_are_expected_and_faults_in_them_suspect(tmp_path: Path) -> None:
    """What such a weight is compared with is itself computed in float64."""
    u, w = torch.randn(48, 8, dtype=torch.float64), torch.randn(64, 48, dtype=torch.float64)
    base = write_checkpoint(tmp_path / "base", {"l.weight": w})
    adapter = write(tmp_path / "a", {"l.hra_u": u}, peft_type="HRA", r=8, apply_GS=False)
    assert [module.verdict for module in adaptertool.drift(base, [adapter]).modules] == ["expected"]
    turn = torch.eye(48, dtype=torch.float64)
    for column in u.T:
        turn = turn @ (torch.eye(48) - 2 * torch.outer(column, column) / (column @ column))
    for number, (merged, verdict) in enumerate([(w @ turn, "expected"), (w @ turn * (1 + 1e-10), "suspect")]):
        path = write_checkpoint(tmp_path / f"merged{number}", {"l.weight": merged})
        (module,) = adaptertool.drift(base, [adapter], merged=path).modules
        assert module.verdict == verdict
