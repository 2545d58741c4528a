"""Inputs that are made so that float64 and double-double leave all elements open: right to the last bit, and none of
them is left to rationals, which take an element at a time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, write_adapter, write_checkpoint
from oracle import fractions
from rationals import EVERY, delta, dora_exactly, matrix, require, summed

import adaptertool
from adaptertool.codecs import BY_DTYPE

GPT2 = {"model_type": "gpt2", "tie_word_embeddings": False}
ROWS, COLUMNS = 8, 16  # so that rows of ones have a norm of 4
CODECS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
Factors = tuple[torch.Tensor, torch.Tensor]

every_dtype = pytest.mark.parametrize("dtype", EVERY, ids=str)
either_way = pytest.mark.parametrize("transposed", [False, True])


def half_a_step(dtype: torch.dtype) -> float:
    """Of numbers from 1 to 2."""
    return 2.0 ** -BY_DTYPE[CODECS[dtype]].digits


def signs(*shape: int) -> torch.Tensor:
    return torch.where(torch.rand(shape) < 0.5, -1.0, 1.0).double()


def one_to_two(dtype: torch.dtype) -> torch.Tensor:
    return (1 + 0.99 * torch.rand(ROWS, COLUMNS, dtype=torch.float64)).to(dtype) * signs(ROWS, COLUMNS).to(dtype)


def with_nothing(*terms: tuple[Any, Any], dtype: torch.dtype = torch.float64) -> Factors:
    """A and B whose product is that of the terms (a column, a row): beside them another that cancels, whose numbers
    have all their bits."""
    a, b = torch.rand(1, COLUMNS, dtype=dtype) + 0.5, torch.rand(ROWS, 1, dtype=dtype) - 0.5
    left = [b, -b, *(torch.ones(ROWS, 1, dtype=dtype) * column for column, _ in terms)]
    right = [a, a, *(torch.ones(1, COLUMNS, dtype=dtype) * row for _, row in terms)]
    return torch.cat(right).to(dtype), torch.cat(left, 1).to(dtype)


def merged(folder: Path, base: torch.Tensor, *adapters: Any, transposed: bool = False, scale: float = 1.0) -> Any:
    """adapters: A, B, and a magnitude for DoRA. Returns the result and the report."""
    name = "h.0.attn.c_attn"
    stored = base.T.contiguous() if transposed else base
    checkpoint = write_checkpoint(folder / "base", {f"{name}.weight": stored}, config=GPT2 if transposed else None)
    paths = []
    for number, (a, b, *magnitude) in enumerate(adapters):
        factors = {f"{name}.lora_A.weight": a.contiguous(), f"{name}.lora_B.weight": b.contiguous()}
        factors |= {f"{name}.lora_magnitude_vector": one for one in magnitude}
        rank = len(a)
        fields = {"r": rank, "lora_alpha": scale * rank, "use_dora": bool(magnitude)}
        paths.append(write_adapter(folder / f"adapter{number}", factors, **fields))
    report = adaptertool.merge(checkpoint, paths, folder / "out")
    found = load(folder / "out")[f"{name}.weight"]
    return (found.T if transposed else found), report


@pytest.mark.long("dtype")
@every_dtype
@either_way
@pytest.mark.parametrize("power", [None, -60, -120, -400])
def test_middles_and_what_lies_beside_them(
    tmp_path: Path, dtype: torch.dtype, transposed: bool, power: int | None
) -> None:
    base, half = one_to_two(dtype), half_a_step(dtype)
    terms = [(signs(ROWS, 1) * half, 1.0)]
    if power is not None:
        terms.append((signs(ROWS, 1) * 2.0 ** (power // 2), 2.0 ** (power // 2)))
    a, b = with_nothing(*terms)
    found, report = merged(tmp_path, base, (a, b), transposed=transposed)
    require(found, summed(base, delta(a, b)))
    if dtype != torch.float64 or power != -60:  # that double-double tells
        assert report.settled > 0.9 * base.numel()
    assert report.settled_one_by_one == 0


@every_dtype
@pytest.mark.parametrize("power", [-30, -120])
def test_almost_all_cancels(tmp_path: Path, dtype: torch.dtype, power: int) -> None:
    """All rows of the base are one, which the adapter takes away; what is left has all bits of a product."""
    row = (1 + torch.rand(1, COLUMNS, dtype=torch.float64)).to(dtype).double()
    base = row.repeat(ROWS, 1).to(dtype)
    small = torch.rand(ROWS, 1, dtype=torch.float64) * 2.0 ** (power // 2)
    a, b = with_nothing((1.0, -row), (small, torch.rand(1, COLUMNS, dtype=torch.float64) * 2.0 ** (power // 2)))
    found, report = merged(tmp_path, base, (a, b))
    require(found, summed(base, delta(a, b)))
    assert report.settled_one_by_one == 0


@pytest.mark.long("dtype")
@every_dtype
@either_way
@pytest.mark.parametrize("scale", [1.0, 1 / 3])
@pytest.mark.parametrize("count", [1, 2])
def test_dora_on_middles(tmp_path: Path, dtype: torch.dtype, transposed: bool, scale: float, count: int) -> None:
    """Norms are 8, of entries of 1 and 3, and magnitudes have as many bits as are stored: three times these have a bit
    more, on the middle."""
    bits = BY_DTYPE[CODECS[dtype]].digits
    threes = torch.rand(ROWS, COLUMNS).argsort(1) < 3 * COLUMNS // 8
    base = (torch.where(threes, 3.0, 1.0) * signs(ROWS, COLUMNS)).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    magnitude = (2.0 ** (bits - 1) + 2 * torch.randint(0, 2 ** (bits - 3), (ROWS,)).double() + 1).to(wide)
    changes = [(*with_nothing(dtype=wide), torch.full((ROWS,), 8.0)) for _ in range(count - 1)]
    changes.append((*with_nothing(dtype=wide), magnitude))
    found, report = merged(tmp_path, base, *changes, transposed=transposed, scale=scale)
    exact = matrix(base)
    for a, b, m in changes:
        assert not any(map(any, delta(a, b)))
        exact = dora_exactly(exact, delta(a, b), fractions(m), Fraction(1))
    require(found, exact)
    assert report.settled > 0.2 * base.numel()
    assert report.settled_one_by_one == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_factors_far_apart(tmp_path: Path, dtype: torch.dtype) -> None:
    """What cancels is 2^200 times what is left."""
    base, half = one_to_two(dtype), half_a_step(dtype)
    far = 2.0**100 * (1 + torch.rand(ROWS, 1, dtype=torch.float64))
    a, b = with_nothing((far, 2.0**100), (-far, 2.0**100), (signs(ROWS, 1) * half, 1.0))
    found, report = merged(tmp_path, base, (a, b))
    require(found, summed(base, delta(a, b)))
    assert report.settled == base.numel()
    assert report.settled_one_by_one == 0


def test_rows_too_far_apart_for_one_array_of_long_numbers(tmp_path: Path) -> None:
    """Middles of rows of all sizes from 2^980 down to 2^-240, and what lies beside them by 2^-120 of a row."""
    sizes = 2.0 ** torch.linspace(980, -240, 70, dtype=torch.float64).round()[:, None]
    base = (1 + torch.rand(70, 4, dtype=torch.float64)) * sizes
    around = torch.rand(1, 4, dtype=torch.float64) + 0.5
    hair = torch.where(torch.rand(70, 1) < 0.5, -1.0, 1.0) * sizes * 2.0**-120
    a = torch.cat([around, around, torch.ones(2, 4, dtype=torch.float64)])
    b = torch.cat([sizes, -sizes, sizes * half_a_step(torch.float64), hair], 1)
    found, report = merged(tmp_path, base, (a, b))
    require(found, summed(base, delta(a, b)))
    assert report.settled == base.numel()
