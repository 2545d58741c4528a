"""What a fuzzer found in the exact arithmetic, distilled: bounds that say nothing, overflow that meets zero, rows of
tiny norm, norms over several blocks."""

from __future__ import annotations

import dataclasses
import decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, same_bits, write_adapter, write_checkpoint
from oracle import fractions, round_fraction
from rationals import OUTPUTS, delta, dora_exactly, matrix, merged, require, summed

import adaptertool
from adaptertool.arithmetic import blocks, correct_rounding, tiling
from adaptertool.codecs import F32
from adaptertool.errors import NonFiniteError
from adaptertool.numerics import rounding
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.ops import DIGITS

GPT2 = {"model_type": "gpt2", "tie_word_embeddings": False}


@pytest.mark.parametrize("alpha", [2.0**53, 1e17, 1e20])
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_no_infinity_however_far_it_extrapolates(tmp_path: Path, dtype: torch.dtype, alpha: float) -> None:
    base = write_checkpoint(tmp_path / "base", {"x.weight": torch.ones(2, 4, dtype=dtype)})
    factors = {"x.lora_A.weight": torch.full((1, 4), 2.0**50), "x.lora_B.weight": torch.full((2, 1), 2.0**50)}
    adapter = write_adapter(tmp_path / "a", factors, r=1, lora_alpha=1)
    with pytest.raises(NonFiniteError, match="beyond the range"):
        adaptertool.wise(base, adapter, tmp_path / "out", alpha)
    adaptertool.wise(base, adapter, tmp_path / "near", 2.0**-100)
    require(load(tmp_path / "near")["x.weight"], [[Fraction(2)] * 4] * 2)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_zeros_times_what_overflows(tmp_path: Path, dtype: torch.dtype, dora: bool) -> None:
    """A is 0, so nothing changes in exact arithmetic; in floats it is 0 times infinity."""
    base = write_checkpoint(tmp_path / "base", {"x.weight": torch.ones(2, 4, dtype=dtype), "x.bias": torch.ones(2)})
    factors = {"x.lora_A.weight": torch.zeros(1, 4), "x.lora_B.weight": torch.full((2, 1), 1e308, dtype=torch.float64)}
    if dora:
        factors["x.lora_magnitude_vector"] = torch.ones(2)
    adapter = write_adapter(tmp_path / "a", factors, r=1, lora_alpha=8, use_dora=dora)
    with pytest.raises(NonFiniteError):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    factors["x.lora_B.weight"] = torch.full((2, 1), 3e38)  # too large for float32 alone, times 8
    adapter = write_adapter(tmp_path / "b", factors, r=1, lora_alpha=8, use_dora=dora)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    assert load(tmp_path / "out")["x.weight"].eq(0.5 if dora else 1).all()
    factors = {"x.lora_A.weight": torch.zeros(1, 4), "x.lora_B.weight": torch.zeros(2, 1)}
    factors["x.lora_B.bias"] = torch.zeros(2)
    adapter = write_adapter(tmp_path / "c", factors, r=1, lora_alpha=1e300, lora_bias=True)
    with pytest.raises(NonFiniteError):
        adaptertool.merge(base, [adapter], tmp_path / "no", weights=[1e300])


def weights_with(row: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W, A, B whose row 5 of W + B·A has next to no length: in itself, or as a difference."""
    base, a, b = torch.randn(16, 48), torch.randn(4, 48) / 4, torch.randn(16, 4)
    if row == "dead":
        base[5], b[5] = torch.randn(48) * 1e-25, 0
    elif row == "tiny":
        base[5], b[5] = torch.randn(48) * 1e-12, b[5] * 1e-9
    else:
        base[5] = -(b @ a)[5] + torch.randn(48) * 1e-6
    return base, a, b


@pytest.mark.long
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("row", ["dead", "tiny", "cancelled"])
@pytest.mark.parametrize(("weight", "alpha"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.5)])
def test_dora_on_a_row_of_tiny_norm(tmp_path: Path, row: str, transposed: bool, weight: float, alpha: float) -> None:
    """It is right, and the other rows are not settled one by one for its sake."""
    (base, a, b), magnitude = weights_with(row), torch.rand(16) + 0.5
    name = "h.0.attn.c_attn"
    tensors = {f"{name}.weight": base.T.contiguous() if transposed else base}
    checkpoint = write_checkpoint(tmp_path / "base", tensors, config=GPT2 if transposed else None)
    factors = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, f"{name}.lora_magnitude_vector": magnitude}
    adapter = write_adapter(tmp_path / "a", factors, r=4, lora_alpha=4, use_dora=True)
    if alpha == 1:
        report = adaptertool.merge(checkpoint, [adapter], tmp_path / "out", weights=[weight])
    else:
        report = adaptertool.wise(checkpoint, adapter, tmp_path / "out", alpha)
    found = load(tmp_path / "out")[f"{name}.weight"]
    exact = dora_exactly(matrix(base), delta(a, b), fractions(magnitude), Fraction(weight) * Fraction(alpha))
    require(found.T if transposed else found, exact)
    assert report.settled_one_by_one <= 48 + 2


def test_norms_are_as_uncertain_as_the_worst_block_of_a_transposed_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the inputs cancel to almost nothing: that is all that the norm of each output is made of."""
    inputs, outputs, name = 6, 8, "h.0.attn.c_attn"
    base = torch.randn(outputs, inputs)
    base[:, :3] *= 2.0**-36
    a = torch.zeros(outputs, inputs, dtype=torch.float64)
    a[:, 3:] = -base[:, 3:].double() / 3 * (1 + torch.randn(outputs, 3).double() * 2.0**-40)
    b, magnitude = torch.eye(outputs, dtype=torch.float64), torch.rand(outputs) + 0.5
    checkpoint = write_checkpoint(tmp_path / "base", {f"{name}.weight": base.T.contiguous()}, config=GPT2)
    factors = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, f"{name}.lora_magnitude_vector": magnitude}
    adapter = write_adapter(tmp_path / "a", factors, r=outputs, lora_alpha=3 * outputs, use_dora=True)
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 1)
    adaptertool.merge(checkpoint, [adapter], tmp_path / "out")
    change = [[3 * d for d in row] for row in delta(a, b)]
    exact = dora_exactly(matrix(base), change, fractions(magnitude), Fraction(1))
    require(load(tmp_path / "out")[f"{name}.weight"].T, exact)


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_rationals_of_a_saved_weight_that_is_stored_transposed(
    tmp_path: Path, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes by the tensor as it is stored, and the DoRA that follows by output rows."""
    name, base, saved = "h.0.attn.c_attn", torch.randn(5, 7), torch.randn(5, 7)
    a, b, magnitude = torch.randn(3, 5), torch.randn(7, 3), torch.rand(7) + 0.5
    checkpoint = write_checkpoint(tmp_path / "base", {f"{name}.weight": base}, config=GPT2)
    first = write_adapter(tmp_path / "1", {f"{name}.weight": saved}, r=3)
    factors = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b, f"{name}.lora_magnitude_vector": magnitude}
    second = write_adapter(tmp_path / "2", factors, r=3, lora_alpha=3, use_dora=True)

    def all_open(values: Any, *rest: Any, **more: Any) -> Any:
        F32.encode(values, *rest, **more)
        return np.arange(len(values))

    def unknown(_ops: Any, _chain: Any, _rows: Any, where: Any, *_: Any) -> Any:
        yield slice(None), DoubleDouble(np.full((3, len(where)), np.inf))

    with monkeypatch.context() as patch:
        patch.setattr(correct_rounding, "UNIT", 2.0**-10)
        patch.setattr(correct_rounding, "values_of", unknown)
        patch.setattr(correct_rounding, "DIGITS", dataclasses.replace(DIGITS, times=None))
        patch.setattr(blocks, "BY_DTYPE", {"F32": dataclasses.replace(F32, encode=all_open)})
        report = adaptertool.merge(checkpoint, [first, second], tmp_path / "slow", weights=[weight, 1.0])
    assert report.settled_one_by_one > 5
    adaptertool.merge(checkpoint, [first, second], tmp_path / "out", weights=[weight, 1.0])
    assert same_bits(*(load(tmp_path / how)[f"{name}.weight"] for how in ("out", "slow")))
    w = Fraction(weight)
    both = zip(matrix(base.T), matrix(saved.T), strict=True)
    mixed = [[x + w * (t - x) for x, t in zip(*rows, strict=True)] for rows in both]
    exact = dora_exactly(mixed, delta(a, b), fractions(magnitude), Fraction(1))
    require(load(tmp_path / "out")[f"{name}.weight"].T, exact)


def test_more_elements_than_the_kernel_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row may have 2^31 elements and more: their indices are then found by numpy."""

    def never(*_: Any) -> int:
        raise AssertionError

    monkeypatch.setattr(rounding, "FUNCTIONS", {"round_f8_BF16": never, "twice_f8_BF16": never})
    monkeypatch.setattr(rounding, "_MOST_INDICES", 3)
    out = np.empty(4, np.uint16)
    where = rounding.round_within(np.array([1.0, 1 + 2.0**-8, 2.0, 3.0]), 1e-9, 0.0, "BF16", out, quick=True)
    assert where.tolist() == [1]


@pytest.mark.parametrize("rows", [1, 2, 3, 12])
def test_many_small_terms_on_a_large_weight(tmp_path: Path, rows: int) -> None:
    """Each term alone would be lost beside the weight: what BLAS does where it adds into what is there."""
    x = 2.0**-13
    a, b = torch.ones(16, 40), torch.full((rows, 16), 0.375 * 2.0**-52)
    a[0], b[:, 0] = 2.0**-12 * (1 + x), 2.0**-12 * (1 - x)
    base = torch.ones(rows, 40)
    require(merged(tmp_path / "f32", base, a, b), summed(base, delta(a, b)))
    a, b = torch.ones(16, 4), torch.full((rows, 16), 0.375 * 2.0**-23)
    b[:, 0] = 2.0**-8 - 8 * 2.0**-24
    base = torch.ones(rows, 4).bfloat16()
    require(merged(tmp_path / "bf16", base, a, b), summed(base, delta(a, b)))


@pytest.mark.parametrize(
    ("a", "b", "alpha"),
    [
        (2.0**100, 1.3 * 2.0**-100, 2.0**-45),
        (1e-30, 1e20, 1e20),
        (2.0**20, 1.3 * 2.0**-120, 2.0**-25),
        (1e30, 1e-30, 1),
    ],
)
@pytest.mark.parametrize("output", OUTPUTS)
def test_numbers_far_apart(tmp_path: Path, a: float, b: float, alpha: float, output: torch.dtype) -> None:
    """What would under- or overflow on the way in float32."""
    base, left, right = torch.zeros(1, 2).to(output), torch.tensor([[a, 2 * a]]), torch.tensor([[b]])
    exact = [[Fraction(alpha) * d for d in row] for row in delta(left, right)]
    if round_fraction(exact[0][1], output) is None:
        with pytest.raises(NonFiniteError, match="beyond the range"):
            merged(tmp_path, base, left, right, alpha)
    else:
        require(merged(tmp_path, base, left, right, alpha), exact)


def test_a_change_below_all_floats_still_decides_a_tie(tmp_path: Path) -> None:
    saved = torch.tensor([[1 + 2.0**-8, 1 + 3 * 2.0**-8]])
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": torch.zeros(1, 2).bfloat16()})
    tensors = {
        "x.base_layer.weight": saved,
        "x.lora_A.weight": torch.tensor([[1e-200, -1e-200]], dtype=torch.float64),
        "x.lora_B.weight": torch.tensor([[1e-200]], dtype=torch.float64),
    }
    adapter = write_adapter(tmp_path / "a", tensors, r=1, lora_alpha=1)
    with pytest.raises(NonFiniteError, match="so small that float64"):
        adaptertool.merge(checkpoint, [adapter], tmp_path / "out")


def test_numbers_at_the_ends_of_the_range(tmp_path: Path) -> None:
    """Found by a review: norms that float32 does not hold, squares that underflow, bounds that did."""
    torch.manual_seed(3)
    rows = torch.randint(1, 6, (6, 9)).double() * 2.0**-133
    cases = [
        (rows.bfloat16(), torch.zeros(1, 9), torch.zeros(6, 1), torch.rand(6) * 2.0**-80, 1.0, 1.0),
        (
            (torch.randn(6, 9) * 2.0**120).bfloat16(),
            torch.zeros(1, 9),
            torch.zeros(6, 1),
            torch.rand(6) * 2.0**121,
            1.0,
            0.5,
        ),
        (torch.full((6, 9), 1e-36).bfloat16(), torch.ones(1, 9), torch.ones(6, 1), torch.full((6,), 1e11), 1.0, 6e-46),
    ]
    for number, (base, a, b, m, alpha, weight) in enumerate(cases):
        checkpoint = write_checkpoint(tmp_path / f"base{number}", {"x.weight": base})
        tensors = {"x.lora_A.weight": a, "x.lora_B.weight": b, "x.lora_magnitude_vector": m}
        adapter = write_adapter(tmp_path / f"a{number}", tensors, r=1, lora_alpha=alpha, use_dora=True)
        adaptertool.merge(checkpoint, [adapter], tmp_path / f"out{number}", weights=[weight])
        found = load(tmp_path / f"out{number}")["x.weight"]
        with decimal.localcontext(prec=120):
            for row in range(6):
                w = [decimal.Decimal(x) for x in base[row].double().tolist()]
                v = [
                    x + decimal.Decimal(float(alpha * b[row, 0])) * decimal.Decimal(y)
                    for x, y in zip(w, a[0].double().tolist(), strict=True)
                ]
                ratio = decimal.Decimal(m[row].item()) / sum(x * x for x in v).sqrt()
                for column in range(9):
                    exact = w[column] + decimal.Decimal(weight) * (ratio * v[column] - w[column])
                    assert Fraction(found[row, column].item()) == round_fraction(Fraction(exact), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("before", ["", "lora", "dora"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_norm_of_0_that_float64_does_not_see(tmp_path: Path, dtype: torch.dtype, before: str, alpha: float) -> None:
    """Where x is small beside y, x + x + y − y − x − x is 0: it is refused as other norms of 0 are."""
    y, x = 2.0**20, 2.0**-40
    own = torch.tensor([[{"": x, "lora": 0.0, "dora": 3.0}[before]], [3.0]], dtype=dtype)
    checkpoint, paths = write_checkpoint(tmp_path / "base", {"x.weight": own}), []
    factors = {"x.lora_A.weight": torch.ones(1, 1), "x.lora_B.weight": torch.zeros(2, 1)}
    if before == "lora":
        factors["x.lora_B.weight"][0] = x
    else:
        factors["x.lora_magnitude_vector"] = torch.tensor([x, 1.0])
    if before:
        paths.append(write_adapter(tmp_path / "first", factors, r=1, lora_alpha=1, use_dora=before == "dora"))
    factors = {
        "x.lora_A.weight": torch.tensor([[x], [y], [-y], [-x], [-x]]),
        "x.lora_B.weight": torch.tensor([[1.0] * 5, [0.0] * 5]),
        "x.lora_magnitude_vector": torch.ones(2),
    }
    paths.append(write_adapter(tmp_path / "second", factors, r=5, lora_alpha=5, use_dora=True))
    with pytest.raises(NonFiniteError, match="norm 0, which"):
        if alpha == 1 or before:
            adaptertool.merge(checkpoint, paths, tmp_path / "out", weights=[1.0] * (len(paths) - 1) + [alpha])
        else:
            adaptertool.wise(checkpoint, paths[0], tmp_path / "out", alpha)
    assert not (tmp_path / "out").exists()
