"""The stages behind float64, on what is built to hurt: results beside the middle of two stored values by 2^-50 to
2^-120, cancellation, outliers, rows of next to no norm, pruned weights; for every dtype. Nothing is to be settled one
by one that double-double, or long numbers, can tell."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, write_adapter, write_checkpoint
from oracle import fractions
from rationals import EVERY, delta, dora_exactly, matrix, require, summed

import adaptertool
from adaptertool.arithmetic import elements
from adaptertool.errors import NonFiniteError

every_output = pytest.mark.parametrize("output", EVERY)
GPT2 = {"model_type": "gpt2", "tie_word_embeddings": False}


def merge(folder: Path, base: torch.Tensor, *adapters: dict[str, Any], weight: float = 1.0) -> Any:
    checkpoint = write_checkpoint(folder / "base", {"x.weight": base})
    made = []
    for number, factors in enumerate(adapters):
        tensors = {f"x.lora_{role}.weight": factors[role] for role in "AB"}
        if "m" in factors:
            tensors["x.lora_magnitude_vector"] = factors["m"]
        rank = len(factors["A"])
        made.append(
            write_adapter(
                folder / f"{number}", tensors, r=rank, lora_alpha=factors.get("alpha", rank), use_dora="m" in factors
            )
        )
    report = adaptertool.merge(checkpoint, made, folder / "out", weights=[weight] * len(made))
    return load(folder / "out")["x.weight"], report


def hairs(count: int) -> torch.Tensor:
    """±2^-k, for k from 50 on."""
    powers = 2.0 ** -torch.arange(50, 50 + count, dtype=torch.float64)
    return torch.cat([powers, -powers])


@every_output
def test_a_hair_beside_the_middle(tmp_path: Path, output: torch.dtype) -> None:
    """Half a unit by one factor, and a hair more or less by the other."""
    base = torch.linspace(1, 2, 41, dtype=torch.float64)[:-1].to(output).repeat(140, 1)
    half = torch.finfo(output).eps / 2
    b = torch.stack([torch.full((140,), half, dtype=torch.float64), hairs(70) * half], 1)
    a = torch.ones(2, 40, dtype=torch.float64)
    found, report = merge(tmp_path, base, {"A": a, "B": b})
    require(found, summed(base, delta(a, b)))
    assert report.settled_one_by_one < (report.settled / 4 if output == torch.float64 else 1)


@every_output
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_a_hair_beside_the_middle_under_dora(tmp_path: Path, output: torch.dtype, weight: float) -> None:
    """Rows 3, 4, 0, 0 of norm 5, and a hair by the factors: the results are near m·3/5 and m·4/5, which are middles."""
    digits = {torch.bfloat16: 9, torch.float16: 12, torch.float32: 25, torch.float64: 50}[output]
    base = torch.tensor([[3.0, 4.0, 0.0, 0.0]] * 120, dtype=torch.float64).to(output)
    magnitude = (torch.randint(2 ** (digits - 1), 2**digits, (120,)) | 1).double() * 2.0 ** (1 - digits) * 5
    a, b = torch.tensor([[1.0, 0.5, 0.0, 0.25]], dtype=torch.float64), hairs(60)[:, None]
    found, report = merge(tmp_path, base, {"A": a, "B": b, "m": magnitude}, weight=weight)
    exact = dora_exactly(matrix(base), delta(a, b), fractions(magnitude), Fraction(weight))
    require(found, exact, base)
    assert report.settled_one_by_one <= 60


def sample(shape: tuple[int, int], output: torch.dtype, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    base = (torch.randn(shape, dtype=torch.float64) / 8).to(output)
    a, b = torch.randn(3, shape[1]), torch.randn(shape[0], 3)
    return base, {"A": a, "B": b, "m": torch.rand(shape[0]) + 0.5}


@pytest.mark.long("what")
@every_output
@pytest.mark.parametrize("what", ["outlier", "large factor", "pruned", "cancelled", "tiny row", "high", "low"])
@pytest.mark.parametrize("dora", [False, True])
def test_what_is_built_to_hurt(tmp_path: Path, output: torch.dtype, what: str, dora: bool) -> None:
    base, factors = sample((12, 20), output, seed=5)
    a, b = factors["A"], factors["B"]
    if what == "outlier":
        base[2, 3] = 2.0**15 if output == torch.float16 else 2.0**100
    elif what == "large factor":
        b[2, 1], a[1] = 2.0**40 if output != torch.float16 else 2.0**10, a[1] * 2.0**-30
    elif what == "pruned":
        base[torch.rand(base.shape) < 0.5] = 0
        base[4:6], b[3:8], a[:, 3] = -0.0, 0, 0
        base[5, 0] = 1
    elif what == "cancelled":
        base = (-(b.double() @ a.double()) * (1 + dora * 2.0**-40)).to(output)  # a norm of 0 is refused
    elif what == "tiny row":
        base[4] *= 2.0**-20
        b[4] *= 2.0**-24
    elif what in ("high", "low"):
        power = {torch.float16: 8, torch.float64: 400}.get(output, 110) * (1 if what == "high" else -1)
        base, factors["A"] = base * 2.0**power, a.double() * 2.0 ** (power // 2)
        factors["B"], factors["m"] = b.double() * 2.0 ** (power - power // 2), factors["m"].double() * 2.0**power
    if dora and what == "pruned":
        base[4, 1] = 1
    if not dora:
        del factors["m"]
    found, report = merge(tmp_path, base, factors)
    change = delta(factors["A"], factors["B"])
    if dora:
        require(found, dora_exactly(matrix(base), change, fractions(factors["m"]), Fraction(1)), base)
    else:
        require(found, summed(base, change), base)
    assert report.settled_one_by_one <= (24 if what == "low" else 4)


@every_output
@pytest.mark.parametrize("dora_first", [False, True])
def test_chains_with_norms_of_what_was_made(tmp_path: Path, output: torch.dtype, dora_first: bool) -> None:
    base, first = sample((10, 16), output, seed=1)
    _, second = sample((10, 16), output, seed=2)
    if not dora_first:
        del first["m"]
    found, report = merge(tmp_path, base, first, second)
    made, one = matrix(base), delta(first["A"], first["B"])
    made = dora_exactly(made, one, fractions(first["m"]), Fraction(1)) if dora_first else summed(base, one)
    exact = dora_exactly(made, delta(second["A"], second["B"]), fractions(second["m"]), Fraction(1))
    require(found, exact)
    assert report.settled_one_by_one == 0


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_parts_of_any_size_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transposed: bool, alpha: float
) -> None:
    """Of float64 weights, of which all elements are open."""
    base, factors = sample((9, 14), torch.float64, seed=3)
    name = "h.0.attn.c_attn"
    stored = base.T.contiguous() if transposed else base
    checkpoint = write_checkpoint(tmp_path / "base", {f"{name}.weight": stored}, config=GPT2 if transposed else None)
    tensors = {f"{name}.lora_{role}.weight": factors[role] for role in "AB"}
    tensors[f"{name}.lora_magnitude_vector"] = factors["m"]
    adapter = write_adapter(tmp_path / "a", tensors, r=3, lora_alpha=3, use_dora=True)
    exact = dora_exactly(matrix(base), delta(factors["A"], factors["B"]), fractions(factors["m"]), Fraction(alpha))
    for size in (1, 40, 1 << 14):
        monkeypatch.setattr(elements, "_PART", size)
        monkeypatch.setattr(elements, "_GAP", size)
        report = adaptertool.wise(checkpoint, adapter, tmp_path / f"{size}", alpha)
        found = load(tmp_path / f"{size}")[f"{name}.weight"]
        require(found.T if transposed else found, exact)
        assert report.settled == report.settled_one_by_one == 0


@every_output
@pytest.mark.parametrize("sparse", [0.0, 2.0])
def test_wise_where_all_cancels(
    tmp_path: Path, output: torch.dtype, sparse: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T = −k·W and α = 1/3: 0, or a hair beside it; few by themselves, or all with their rows."""
    monkeypatch.setattr(elements, "_SPARSE", sparse)
    torch.manual_seed(0)
    base = torch.randn(30, 40, dtype=torch.float64).to(output)
    tuned = (-base.double() * torch.randint(1, 5, base.shape)).to(output)
    one, two = (write_checkpoint(tmp_path / name, {"x": t}) for name, t in (("base", base), ("tuned", tuned)))
    for alpha in (1 / 3, 0.5, 0.1):
        report = adaptertool.wise(one, two, tmp_path / f"{alpha}", alpha)
        pairs = zip(matrix(base), matrix(tuned), strict=True)
        exact = [[w + Fraction(alpha) * (t - w) for w, t in zip(*rows, strict=True)] for rows in pairs]
        require(load(tmp_path / f"{alpha}")["x"], exact, base)
        assert report.settled_one_by_one == 0


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dora", [False, True])
def test_what_is_no_number_in_float64_storage_is_an_error(tmp_path: Path, number: float, dora: bool) -> None:
    base, factors = sample((6, 8), torch.float64, seed=1)
    base[2, 3] = number
    if not dora:
        del factors["m"]
    with pytest.raises(NonFiniteError, match=r"element \(2, 3\) holds|element \(2, 0\)"):
        merge(tmp_path, base, factors)
    base[2], factors["B"][2] = 0, 0
    if dora:
        with pytest.raises(NonFiniteError, match="norm 0"):
            merge(tmp_path / "zero", base, factors)


@pytest.mark.parametrize("small", [1e-200, 1e-150])
def test_float64_is_exact_where_the_bound_of_floats_says_nothing(tmp_path: Path, small: float) -> None:
    """Factors and products below all that float64 computes without loss."""
    base, factors = sample((6, 8), torch.float64, seed=1)
    a, b = factors["A"].double() * small, factors["B"].double() * small
    b[:3] /= small
    base[3:] *= small
    found, _ = merge(tmp_path, base, {"A": a, "B": b})
    require(found, summed(base, delta(a, b)))


def test_runs_hold_every_element_once() -> None:
    rng = np.random.default_rng(0)
    for columns in (1, 7, 5000, 1 << 15):
        where = np.sort(rng.choice(20 * columns, size=min(20 * columns, 50), replace=False))
        seen = np.zeros(len(where), int)
        for part, begin, end in elements._runs(where // columns, columns):
            assert begin < end and (end - begin <= elements._ROWS or (end - begin) * columns <= elements._PART)
            assert ((where[part] // columns >= begin) & (where[part] // columns < end)).all()
            seen[part] += 1
        assert (seen == 1).all()
