"""LoKr against rationals, through every command; its time is measured nowhere here."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, write_checkpoint
from one_kind import difference, require_commands, write
from oracle import fractions
from rationals import EVERY, Matrix

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

A, B, C, D, R = 2, 3, 4, 2, 2
FULL1, FULL2 = {"lokr_w1": (A, C)}, {"lokr_w2": (B, D)}
PAIR1, PAIR2 = {"lokr_w1_a": (A, R), "lokr_w1_b": (R, C)}, {"lokr_w2_a": (B, R), "lokr_w2_b": (R, D)}
ALL = {"full": {**FULL1, **FULL2}, "usual": {**FULL1, **PAIR2}, "both": {**PAIR1, **PAIR2}, "odd": {**PAIR1, **FULL2}}


def random(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Numbers of all sizes, whose products have all bits of two factors."""
    return {role: (torch.randn(s) * 2.0 ** torch.randint(-12, 3, s)).to(dtype) for role, s in shapes.items()}


def exactly(factors: dict[str, torch.Tensor], weight: tuple[int, ...], scale: float) -> Matrix:
    """By the formula of the paper, one element after the other; (out, in·k)"""
    own = {role: tensor.reshape(len(tensor), -1) for role, tensor in factors.items()}
    numbers = {role: [fractions(row) for row in tensor] for role, tensor in own.items()}
    a = factors["lokr_w1" if "lokr_w1" in factors else "lokr_w1_a"].shape[0]
    c = factors["lokr_w1" if "lokr_w1" in factors else "lokr_w1_b"].shape[1]
    kernel, (b, d) = math.prod(weight[2:]), (weight[0] // a, weight[1] // c)

    def product(left: Matrix, right: Matrix, i: int, j: int) -> Fraction:
        return sum((x * row[j] for x, row in zip(left[i], right, strict=True)), Fraction())

    def first(i: int, j: int) -> Fraction:
        if "lokr_w1" in numbers:
            return numbers["lokr_w1"][i][j]
        return product(numbers["lokr_w1_a"], numbers["lokr_w1_b"], i, j)

    def second(p: int, q: int, t: int) -> Fraction:
        if "lokr_w2" in numbers:
            return numbers["lokr_w2"][p][q * kernel + t]
        left, right = numbers["lokr_w2_a"], numbers["lokr_w2_b"]
        if "lokr_t2" not in numbers:
            return product(left, right, p, q * kernel + t)
        core = numbers["lokr_t2"]
        pairs = [(i, j) for i in range(len(left)) for j in range(len(right))]
        return sum((core[i][j * kernel + t] * left[i][p] * right[j][q] for i, j in pairs), Fraction())

    return [
        [
            Fraction(scale) * first(o // b, x // d) * second(o % b, x % d, t)
            for x in range(weight[1])
            for t in range(kernel)
        ]
        for o in range(weight[0])
    ]


@pytest.mark.long("form")
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("form", ALL)
def test_linear(tmp_path: Path, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    factors, shape = random(ALL[form], dtype), (A * B, C * D)
    stored = {"l.weight": torch.randn(shape).to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)}
    adapter = write(
        tmp_path / "a", {f"l.{role}": tensor for role, tensor in factors.items()}, peft_type="LOKR", r=R, alpha=3.0
    )
    change = exactly(factors, shape, 3.0 / R)
    require_commands(tmp_path, stored, adapter, {"l.weight": difference(change)}, monkeypatch)


@pytest.mark.long("form")
@pytest.mark.parametrize("kernel", [(3, 2), (3, 1), (3,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", [*ALL, "tucker"])
def test_convolutions(
    tmp_path: Path, form: str, kernel: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stored W₂ in one dimension PEFT has another order (the oracle's case lokr-full)."""
    if kernel == (3,) and form in ("full", "odd"):
        return
    count = math.prod(kernel)
    tucker = {"lokr_t2": (R, R, *kernel, 1)[:4], "lokr_w2_a": (R, B), "lokr_w2_b": (R, D)}
    shapes: dict[str, Any] = {**FULL1, **tucker} if form == "tucker" else ALL[form]
    if form != "tucker":
        shapes = shapes | {
            r: s for r, s in (("lokr_w2", (B, D, *kernel)), ("lokr_w2_b", (R, D * count))) if r in shapes
        }
    factors, weight = random(shapes, dtype), (A * B, C * D, *kernel)
    adapter = write(
        tmp_path / "a", {f"l.{role}": tensor for role, tensor in factors.items()}, peft_type="LOKR", r=R, alpha=R
    )
    formulas = {"l.weight": difference(exactly(factors, weight, 1.0))}
    require_commands(tmp_path, {"l.weight": torch.randn(weight)}, adapter, formulas, monkeypatch, lora=False)


@pytest.mark.parametrize("turned", [True, False])
def test_square_weights_that_are_stored_transposed(
    tmp_path: Path, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT has none such, and other libraries may: never silently wrong."""
    name = "h.0.attn.c_proj" if turned else "l"
    for form in ("full", "usual"):
        shapes = {"lokr_w1": (2, 3), **({"lokr_w2": (3, 2)} if form == "full" else {})}
        shapes |= {} if form == "full" else {"lokr_w2_a": (3, R), "lokr_w2_b": (R, 2)}
        factors = random(shapes)
        adapter = write(
            tmp_path / form / "a", {f"{name}.{role}": t for role, t in factors.items()}, peft_type="LOKR", r=R, alpha=R
        )
        change = exactly(factors, (6, 6), 1.0)
        change = [list(column) for column in zip(*change, strict=True)] if turned else change
        formulas = {f"{name}.weight": difference(change)}
        config = '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}'
        stored = {f"{name}.weight": torch.randn(6, 6)}
        require_commands(tmp_path / form, stored, adapter, formulas, monkeypatch, config=config, lora=False)


def test_what_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(A * B, C * D)})
    usual = random(ALL["usual"])
    for number, (changes, fields, error) in enumerate(
        [
            ({"lokr_w1": None}, {}, InputError),
            ({"lokr_w2_b": None}, {}, InputError),
            ({"lokr_w2": torch.ones(B, D)}, {}, UnsupportedError),
            ({"lokr_t2": torch.ones(R, R, 3, 3)}, {}, UnsupportedError),
            ({"lokr_w1": torch.ones(A + 1, C)}, {}, MismatchError),
            ({"lokr_w1": torch.ones(A, C + 1)}, {}, MismatchError),
            ({"lokr_w1": torch.ones(A, 2 * C)}, {}, MismatchError),
            ({"lokr_w1": torch.ones(0, C)}, {}, MismatchError),
            ({"lokr_w1": torch.ones(A)}, {}, InputError),
            ({"lokr_w2_a": torch.ones(B, R, 1)}, {}, MismatchError),
            ({"lokr_w1": torch.full((A, C), torch.inf)}, {}, InputError),
            ({}, {"r": 3}, MismatchError),
            ({}, {"r": None}, InputError),
            ({}, {"use_rslora": True}, UnsupportedError),
        ]
    ):
        factors = {f"l.{role}": tensor for role, tensor in {**usual, **changes}.items() if tensor is not None}
        adapter = write(tmp_path / f"{number}", factors, **{"peft_type": "LOKR", "r": R, "alpha": 2, **fields})
        with pytest.raises(error):
            adaptertool.merge(base, [adapter], tmp_path / "out")
        adaptertool.inspect(adapter, base)


@pytest.mark.parametrize("form", ["full", "usual", "both"])
def test_sum_takes_the_leading_part_where_there_is_a_base(tmp_path: Path, form: str) -> None:
    """Its singular values are the products of those of the two: as LoRA it leaves those that do not fit."""
    factors = {role: torch.randn(shape) for role, shape in ALL[form].items()}
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(A * B, C * D)})
    tensors = {f"l.{role}": tensor for role, tensor in factors.items()}
    adapter = write(tmp_path / "a", tensors, peft_type="LOKR", r=R, alpha=3.0)
    with pytest.raises(UnsupportedError, match=r"l is of kind lokr.*--base"):
        adaptertool.sum_adapters([adapter], tmp_path / "out", rank=3)
    report = adaptertool.sum_adapters([adapter], tmp_path / "out", base=base, rank=3)
    first = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    second = factors["lokr_w2"] if "lokr_w2" in factors else factors["lokr_w2_a"] @ factors["lokr_w2_b"]
    both = torch.outer(*(torch.linalg.svdvals(matrix.double()) for matrix in (first, second)))
    values = 3.0 / R * both.flatten().sort(descending=True).values
    assert report.layers[0].error == pytest.approx(float(values[3:].norm() / values.norm()), rel=1e-5)
    made = load(tmp_path / "out")
    a, b = (made[f"{PREFIX}l.lora_{side}.weight"].double() for side in "AB")
    change = 3.0 / R * torch.kron(first.double(), second.double())
    assert float((b @ a - change).norm()) == pytest.approx(float(values[3:].norm()), rel=1e-5)
