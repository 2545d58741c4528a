"""What float64 knows of the norms of each row, in chains whose rows differ much: what is open is decided without
making all of its row in double-double."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, write_adapter, write_checkpoint
from oracle import fractions
from rationals import EVERY, Matrix, delta, dora_exactly, matrix, require

import adaptertool
from adaptertool.arithmetic import correct_rounding, fused
from adaptertool.arithmetic.by_row import norms_within
from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.correct_rounding import OpenElements
from adaptertool.numerics.double_double import DoubleDouble

OUT, IN, RANK = 40, 30, 2
CHAINS = ["dd", "ddd", "ld", "dl", "dld", "d"]


def adapter(folder: Path, kind: str, seed: int) -> tuple[Path, Callable[[Matrix, Fraction], Matrix]]:
    """LoRA or DoRA, the rows of whose factors are of many sizes, and what it makes of a weight."""
    rng = torch.Generator().manual_seed(seed)
    sizes = 2.0 ** torch.randint(-20, 3, (OUT,), generator=rng)
    a, b = (torch.randn(*shape, generator=rng) for shape in ((RANK, IN), (OUT, RANK)))
    b *= sizes[torch.randperm(OUT, generator=rng)][:, None]
    tensors = {"x.lora_A.weight": a, "x.lora_B.weight": b}
    magnitude = torch.randn(OUT, generator=rng) * sizes
    if kind == "d":
        tensors["x.lora_magnitude_vector"] = magnitude
    path = write_adapter(folder / f"{seed}", tensors, r=RANK, lora_alpha=RANK, use_dora=kind == "d")
    change = delta(a, b)

    def made(rows: Matrix, weight: Fraction) -> Matrix:
        if kind == "d":
            return dora_exactly(rows, change, fractions(magnitude), weight)
        return [[w + weight * d for w, d in zip(*pair, strict=True)] for pair in zip(rows, change, strict=True)]

    return path, made


def sample(folder: Path, kinds: str, dtype: torch.dtype, weight: float) -> tuple[torch.Tensor, list[Path], Matrix]:
    rng = torch.Generator().manual_seed(len(kinds))
    base = (torch.randn(OUT, IN, generator=rng, dtype=torch.float64) * 0.02).to(dtype)
    exact, paths = matrix(base), []
    for seed, kind in enumerate(kinds):
        path, made = adapter(folder, kind, seed)
        exact = made(exact, Fraction(weight))
        paths.append(path)
    return base, paths, exact


def merged(folder: Path, base: torch.Tensor, paths: Sequence[Path], weight: float) -> torch.Tensor:
    checkpoint = write_checkpoint(folder / "base", {"x.weight": base})
    adaptertool.merge(checkpoint, paths, folder / "out", weights=[weight] * len(paths))
    return load(folder / "out")["x.weight"]


@pytest.fixture(autouse=True)
def _single(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements are few beside their rows, however many are open."""
    monkeypatch.setattr("adaptertool.arithmetic.elements._SPARSE", 1e9)


@pytest.fixture
def _all_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their bound floats leave all elements open."""
    monkeypatch.setattr(correct_rounding.Bound, "margin", lambda *_: (1e30, 0.0))
    monkeypatch.setattr(fused, "FUNCTIONS", {})


@pytest.mark.long("kinds")
@pytest.mark.parametrize("kinds", CHAINS)
@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.usefixtures("_all_open")
def test_what_is_open_is_rounded_correctly(tmp_path: Path, kinds: str, weight: float, dtype: torch.dtype) -> None:
    base, paths, exact = sample(tmp_path, kinds, dtype, weight)
    require(merged(tmp_path, base, paths, weight), exact, base)


@pytest.mark.long("kinds")
@pytest.mark.parametrize("kinds", CHAINS)
@pytest.mark.parametrize("weight", [1.0, 0.3, -2.5])
@pytest.mark.usefixtures("_all_open")
def test_the_exact_norm_is_within(tmp_path: Path, kinds: str, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not far from the ends: an error of ten thousand roundings would decide little."""
    seen: list[tuple[Chain, dict[int, DoubleDouble]]] = []

    def within(own: Chain, *arguments: Any) -> Any:
        found = norms_within(own, *arguments)
        assert found is not None
        seen.append((own, found))
        return found

    monkeypatch.setattr(correct_rounding, "norms_within", within)
    base, paths, _ = sample(tmp_path, kinds, torch.float32, weight)
    merged(tmp_path, base, paths, weight)
    ((own, found),) = seen
    assert sorted(found) == [number for number, kind in enumerate(kinds) if kind == "d"]
    rows = matrix(base)
    for number, kind in enumerate(kinds):
        factors = own.factors(number, own.step.edits[number], slice(0, OUT))
        change = delta(torch.tensor(factors["lora_A"]), torch.tensor(factors["lora_B"]))
        if kind == "d":
            known = found[number]
            for row, add, high, error in zip(rows, change, known.high.flat, known.error.flat, strict=True):
                square = sum(((w + d) ** 2 for w, d in zip(row, add, strict=True)), Fraction())
                norm, off = Fraction(float(high)), Fraction(float(error))
                assert max(norm - off, 0) ** 2 <= square <= (norm + off) ** 2
            assert np.median(known.error / known.high) < 1e4 * 2.0**-53
        rows = adapter(tmp_path / "again", kind, number)[1](rows, Fraction(weight))


@pytest.mark.usefixtures("_all_open")
@pytest.mark.parametrize("kinds", ["dd", "ddd", "dld"])
def test_few_elements_take_whole_rows(tmp_path: Path, kinds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of float32, whose middles are too far apart for the error of a norm to reach one often."""
    counts: list[tuple[bool, int]] = []
    by_pairs = OpenElements._by_pairs

    def counted(own: OpenElements, left: Any, *others: Any) -> Any:
        counts.append((others[-1] is None, len(left)))
        return by_pairs(own, left, *others)

    monkeypatch.setattr(OpenElements, "_by_pairs", counted)
    base, paths, _ = sample(tmp_path, kinds, torch.float32, 1.0)
    merged(tmp_path, base, paths, 1.0)
    assert counts[0] == (False, OUT * IN)
    assert sum(count for whole, count in counts if whole) < OUT * IN / 100
