"""Exact to the last bit: every stored element is the correct rounding of the real formula, held against rationals.

The oracle is written apart from the package: fractions for sums and products, decimals of 120 digits for roots.
"""

from __future__ import annotations

import dataclasses
import decimal
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, same_bits, write_adapter, write_checkpoint
from oracle import fractions
from rationals import EVERY, OUTPUTS, delta, dora_exactly, matrix, merged, require, summed

import adaptertool
from adaptertool.arithmetic import block, blocks, correct_rounding, stretch, tiling
from adaptertool.codecs import BF16
from adaptertool.errors import NonFiniteError
from adaptertool.numerics import compiled


def grid(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> torch.Tensor:
    """Random values; or few bits, so that exact middles are common; or wide ranges with zeros of both signs."""
    if kind == "random":
        return (torch.randn(shape, dtype=torch.float64) / 8).to(dtype)
    if kind == "few bits":
        return (torch.randint(-24, 25, shape) * 2.0 ** torch.randint(-6, 1, shape)).to(dtype)
    values = torch.randn(shape, dtype=torch.float64) * 2.0 ** torch.randint(-20, 3, shape)
    values[torch.rand(shape) < 0.2] = 0.0
    values[torch.rand(shape) < 0.2] = -0.0
    return values.to(dtype)


KINDS = ["random", "few bits", "wide"]
R = 3


def lora(shape: tuple[int, int], dtype: torch.dtype, kind: str) -> dict[str, torch.Tensor]:
    return {"x.lora_A.weight": grid((R, shape[1]), dtype, kind), "x.lora_B.weight": grid((shape[0], R), dtype, kind)}


@pytest.mark.long("kind", "output")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", EVERY)
@pytest.mark.parametrize("output", EVERY)
@pytest.mark.parametrize(("alpha", "weight"), [(6, 1.0), (1, 1.0), (6, 0.3), (5, -0.5)])
def test_lora(tmp_path: Path, kind: str, factor: torch.dtype, output: torch.dtype, alpha: int, weight: float) -> None:
    base, factors = grid((7, 9), output, kind), lora((7, 9), factor, kind)
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": base})
    adapter = write_adapter(tmp_path / "a", factors, r=R, lora_alpha=alpha)
    adaptertool.merge(checkpoint, [adapter], tmp_path / "out", weights=[weight])
    scale = Fraction(alpha / R) * Fraction(weight)
    change = delta(factors["x.lora_A.weight"], factors["x.lora_B.weight"])
    exact = [[w + scale * d for w, d in zip(*rows, strict=True)] for rows in zip(matrix(base), change, strict=True)]
    require(load(tmp_path / "out")["x.weight"], exact, base)


@pytest.mark.long("kind", "output")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuned", EVERY)
@pytest.mark.parametrize("output", EVERY)
def test_wise_of_checkpoints(tmp_path: Path, kind: str, tuned: torch.dtype, output: torch.dtype) -> None:
    base, other = grid((9, 11), output, kind), grid((9, 11), tuned, kind)
    one = write_checkpoint(tmp_path / "base", {"x": base})
    two = write_checkpoint(tmp_path / "tuned", {"x": other})
    alphas = [0.1, 0.3, 0.5, 0.75, 1.5, -0.1]
    adaptertool.wise(one, two, tmp_path / "out", alphas)
    for alpha in alphas:
        a = Fraction(alpha)
        exact = [
            [w + a * (t - w) for w, t in zip(*rows, strict=True)]
            for rows in zip(matrix(base), matrix(other), strict=True)
        ]
        require(load(tmp_path / "out" / f"alpha-{alpha:.3f}")["x"], exact, base)


@pytest.mark.parametrize("output", EVERY)
@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_of_everything_rational(tmp_path: Path, output: torch.dtype, kind: str) -> None:
    """A saved tensor with a weight, LoRA of two adapters, lora_bias; also part of the way."""
    base, bias, saved = grid((6, 8), output, kind), grid((1, 6), output, kind), grid((6, 8), torch.float32, kind)
    first, second = lora((6, 8), torch.bfloat16, kind), lora((6, 8), torch.float32, kind)
    offset = grid((1, 6), torch.float32, kind)
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": base, "x.bias": bias[0]})
    one = write_adapter(tmp_path / "1", {**first, "x.base_layer.weight": saved}, r=R, lora_alpha=2)
    two = write_adapter(tmp_path / "2", {**second, "x.lora_B.bias": offset[0]}, r=R, lora_alpha=3, lora_bias=True)
    adaptertool.merge(checkpoint, [one, two], tmp_path / "out", weights=[0.7, 1.1])
    w1, w2, s1, s2 = Fraction(0.7), Fraction(1.1), Fraction(2 / 3), Fraction(1)
    d1, d2 = (delta(f["x.lora_A.weight"], f["x.lora_B.weight"]) for f in (first, second))
    exact = [
        [w + w1 * (t - w) + w1 * s1 * p + w2 * s2 * q for w, t, p, q in zip(*rows, strict=True)]
        for rows in zip(matrix(base), matrix(saved), d1, d2, strict=True)
    ]
    found = load(tmp_path / "out")
    require(found["x.weight"], exact, base)
    shifted = [[b + w2 * s2 * c for b, c in zip(fractions(bias), fractions(offset), strict=True)]]
    require(found["x.bias"][None], shifted, bias)
    adaptertool.wise(checkpoint, one, tmp_path / "part", 0.1)
    a = Fraction(0.1)
    exact = [
        [w + a * (t + s1 * p - w) for w, t, p in zip(*rows, strict=True)]
        for rows in zip(matrix(base), matrix(saved), d1, strict=True)
    ]
    require(load(tmp_path / "part")["x.weight"], exact, base)


@pytest.mark.long("output")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("factor", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("output", EVERY)
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_dora(tmp_path: Path, factor: torch.dtype, output: torch.dtype, weight: float, transposed: bool) -> None:
    base, factors = grid((7, 9), output, "random"), lora((7, 9), factor, "random")
    magnitude = (torch.rand(7) + 0.5).to(factor)
    stored = base.T.contiguous() if transposed else base
    checkpoint = write_checkpoint(
        tmp_path / "base", {"x.c_proj.weight": stored}, config={"model_type": "gpt2", "tie_word_embeddings": False}
    )
    tensors = {key.replace("x.", "x.c_proj."): value for key, value in factors.items()}
    tensors["x.c_proj.lora_magnitude_vector"] = magnitude
    if not transposed:
        checkpoint = write_checkpoint(tmp_path / "base", {"x.c_proj.weight": stored})
    adapter = write_adapter(tmp_path / "a", tensors, r=R, lora_alpha=2, use_dora=True)
    adaptertool.merge(checkpoint, [adapter], tmp_path / "out", weights=[weight])
    s = Fraction(2 / 3)
    change = [[s * d for d in row] for row in delta(factors["x.lora_A.weight"], factors["x.lora_B.weight"])]
    exact = dora_exactly(matrix(base), change, fractions(magnitude), Fraction(weight))
    found = load(tmp_path / "out")["x.c_proj.weight"]
    require(found.T if transposed else found, exact)


def test_dora_on_exact_middles(tmp_path: Path) -> None:
    """Rows of norm 5 with m of few bits: W' is rational, and lies in the middle of two bf16 values; or just beside."""
    rows, magnitudes = [], []
    for up in (0, 1, -1):
        for number in range(1, 40, 2):
            rows.append([3.0, 4.0, 0.0, 0.0])
            magnitudes.append(5 * (256 + number) / 512 + up * 2.0**-40)  # 3·m/5 and 4·m/5 then have 9 bits, or more
    base = torch.tensor(rows, dtype=torch.bfloat16)
    magnitude = torch.tensor(magnitudes, dtype=torch.float64)
    zero = {"x.lora_A.weight": torch.zeros(R, 4), "x.lora_B.weight": torch.zeros(len(rows), R)}
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": base})
    adapter = write_adapter(tmp_path / "a", {**zero, "x.lora_magnitude_vector": magnitude}, r=R, use_dora=True)
    report = adaptertool.merge(checkpoint, [adapter], tmp_path / "out")
    exact = [[Fraction(w) * m / 5 for w in row] for row, m in zip(rows, fractions(magnitude), strict=True)]
    require(load(tmp_path / "out")["x.weight"], exact)
    assert report.settled > 0
    assert report.settled_one_by_one == 0  # the norm is known to be 5: a root without error


def beside_the_middle(output: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and deltas of half a unit and of a hair more or less (2^-50 of it), for LoRA of rank 1."""
    weights = torch.linspace(1, 2, 33, dtype=torch.float64)[:-1].to(output).to(torch.float64)
    half = torch.finfo(output).eps / 2
    hair = torch.tensor([half, half * (1 + 2.0**-50), half * (1 - 2.0**-50)], dtype=torch.float64)
    return weights.repeat(6, 1).to(output), torch.cat([hair, -hair])


@pytest.mark.parametrize("output", EVERY)
def test_middles_and_hairs(tmp_path: Path, output: torch.dtype) -> None:
    base, steps = beside_the_middle(output)
    factors = {"x.lora_A.weight": torch.ones(1, base.shape[1]), "x.lora_B.weight": steps[:, None]}
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": base})
    adapter = write_adapter(tmp_path / "a", factors, r=1, lora_alpha=1)
    report = adaptertool.merge(checkpoint, [adapter], tmp_path / "out")
    exact = [[w + d for w in row] for row, d in zip(matrix(base), fractions(steps), strict=True)]
    require(load(tmp_path / "out")["x.weight"], exact)
    assert report.settled >= base.shape[1] or output == torch.float64  # where double-double does


@pytest.mark.parametrize("output", OUTPUTS)
def test_range_and_subnormals(tmp_path: Path, output: torch.dtype) -> None:
    """The largest finite value, a hair below half a unit above it; and sums around the smallest values."""
    top, tiny = torch.finfo(output).max, torch.finfo(output).smallest_normal * torch.finfo(output).eps
    unit = top * torch.finfo(output).eps / (2 - torch.finfo(output).eps)
    base = torch.tensor([[top, -top, tiny, -tiny, 0.0, -0.0]], dtype=torch.float64).to(output)
    near = unit / 2 * (1 - 2.0**-20)
    steps = torch.tensor([[near, -near, tiny / 2, tiny, tiny / 2, -tiny / 4]], dtype=torch.float64)
    factors = {"x.lora_A.weight": steps, "x.lora_B.weight": torch.ones(1, 1)}
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": base})
    adaptertool.merge(checkpoint, [write_adapter(tmp_path / "a", factors, r=1, lora_alpha=1)], tmp_path / "out")
    exact = [[w + d for w, d in zip(matrix(base)[0], fractions(steps), strict=True)]]
    require(load(tmp_path / "out")["x.weight"], exact)
    steps[0, 0] = unit / 2
    factors["x.lora_A.weight"] = steps
    with pytest.raises(NonFiniteError, match=r"element \(0, 0\): the result is beyond the range"):
        adaptertool.merge(checkpoint, [write_adapter(tmp_path / "b", factors, r=1, lora_alpha=1)], tmp_path / "no")


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zeros_keep_their_sign(tmp_path: Path, value: float) -> None:
    """A zero weight to which exactly nothing is added, by zero factors or because products cancel."""
    base = torch.full((4, 8), value).bfloat16()
    a, b = torch.randn(2, 8), torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    a[1] = -a[0]
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": base})
    adapter = write_adapter(tmp_path / "a", {"x.lora_A.weight": a, "x.lora_B.weight": b}, r=2, lora_alpha=2)
    adaptertool.merge(checkpoint, [adapter], tmp_path / "out")
    found = load(tmp_path / "out")["x.weight"]
    assert found[[0, 3]].eq(0).all() and found[[0, 3]].signbit().eq(bool(torch.tensor(value).signbit())).all()
    require(found, delta(a, b), base)


def test_blocks_threads_and_views_do_not_change_a_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, factors = grid((40, 24), torch.bfloat16, "few bits"), lora((40, 24), torch.bfloat16, "few bits")
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": base})
    adapter = write_adapter(tmp_path / "a", factors, r=R, lora_alpha=3)
    adaptertool.merge(checkpoint, [adapter], tmp_path / "out")
    whole = (tmp_path / "out" / "model.safetensors").read_bytes()
    for size, threads in ((1, 1), (50, 3), (1000, 2)):
        monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", size)
        adaptertool.merge(checkpoint, [adapter], tmp_path / f"{size}", threads=threads)
        assert (tmp_path / f"{size}" / "model.safetensors").read_bytes() == whole


def test_fast_keeps_its_bound(tmp_path: Path) -> None:
    """max(1 ulp, (r+4)·u·(|W| + |s|·|B||A|)), and it is not exact: else this test would show nothing."""
    differing = 0
    for output in OUTPUTS:
        base, factors = grid((64, 96), output, "random"), lora((64, 96), torch.float32, "random")
        checkpoint = write_checkpoint(tmp_path / f"{output}", {"x.weight": base})
        adapter = write_adapter(tmp_path / f"a{output}", factors, r=R, lora_alpha=2)
        adaptertool.merge(checkpoint, [adapter], tmp_path / f"fast{output}", precision="fast")
        adaptertool.merge(checkpoint, [adapter], tmp_path / f"exact{output}")
        a, b = (factors[f"x.lora_{name}.weight"].double() for name in "AB")
        exact, found = base.double() + b @ a * (2 / 3), load(tmp_path / f"fast{output}")["x.weight"]
        reach = base.double().abs() + b.abs() @ a.abs() * (2 / 3)
        ulp = exact.abs() * torch.finfo(output).eps + torch.finfo(output).tiny
        unit = 2.0**-24 if output != torch.float32 else 2.0**-53
        assert ((found.double() - exact).abs() <= torch.maximum(ulp, (R + 4) * unit * reach)).all()
        differing += int((found != load(tmp_path / f"exact{output}")["x.weight"]).sum())
    base, steps = beside_the_middle(torch.bfloat16)
    factors = {"x.lora_A.weight": torch.ones(1, base.shape[1]), "x.lora_B.weight": steps[:, None]}
    checkpoint = write_checkpoint(tmp_path / "b", {"x.weight": base})
    adapter = write_adapter(tmp_path / "a", factors, r=1, lora_alpha=1)
    for precision in ("fast", "exact"):
        adaptertool.merge(checkpoint, [adapter], tmp_path / precision, precision=precision)
    differing += int((load(tmp_path / "fast")["x.weight"] != load(tmp_path / "exact")["x.weight"]).sum())
    assert differing > 0


def test_ties_do_not_make_it_crawl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 factors on float32 weights: exact middles by the thousand, hardly one of them settled by itself; and none at
    all where a block is made in one visit."""
    base = grid((256, 512), torch.float32, "random")
    factors: dict[str, Any] = lora((256, 512), torch.bfloat16, "few bits")
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": base})
    adapter = write_adapter(tmp_path / "a", factors, r=R, lora_alpha=3)
    at_once = adaptertool.merge(checkpoint, [adapter], tmp_path / "at-once")
    assert at_once.settled < 10 or not compiled.FUNCTIONS
    monkeypatch.setattr(block, "fused_of", lambda _: None)
    monkeypatch.setattr(stretch, "SMALL", 0)
    report = adaptertool.merge(checkpoint, [adapter], tmp_path / "out")
    assert report.settled > 1000
    assert report.settled_one_by_one < 10
    assert same_bits(*(load(tmp_path / name)["x.weight"] for name in ("at-once", "out")))


@pytest.mark.parametrize("compose", ["sequential", "mixed"])
def test_two_dora(tmp_path: Path, compose: str) -> None:
    """The second takes its norms from what the first produced, or from the base."""
    base = grid((5, 8), torch.float32, "random")
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": base})
    factors, scales, adapters = [], [Fraction(2 / 3), Fraction(4 / 3)], []
    for number, alpha in enumerate((2, 4)):
        tensors = lora((5, 8), torch.float32, "random") | {"x.lora_magnitude_vector": torch.rand(5) + 0.5}
        factors.append(tensors)
        adapters.append(write_adapter(tmp_path / f"{number}", tensors, r=R, lora_alpha=alpha, use_dora=True))
    adaptertool.merge(checkpoint, adapters, tmp_path / "out", compose=compose)
    changes = [
        [[scale * d for d in row] for row in delta(f["x.lora_A.weight"], f["x.lora_B.weight"])]
        for f, scale in zip(factors, scales, strict=True)
    ]
    exact = matrix(base)
    with decimal.localcontext(prec=120):
        for tensors, change in zip(factors, changes, strict=True):
            grown = [[w + d for w, d in zip(*rows, strict=True)] for rows in zip(exact, change, strict=True)]
            normed = [[w + d for w, d in zip(*rows, strict=True)] for rows in zip(matrix(base), change, strict=True)]
            normed = grown if compose == "sequential" else normed
            for i, m in enumerate(fractions(tensors["x.lora_magnitude_vector"])):
                square = sum((v * v for v in normed[i]), Fraction())
                norm = (Decimal(square.numerator) / Decimal(square.denominator)).sqrt()
                factor = Fraction(Decimal(m.numerator) / Decimal(m.denominator) / norm)
                grown[i] = [factor * v for v in grown[i]]
            exact = grown
    require(load(tmp_path / "out")["x.weight"], exact)


def test_stages_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all elements open, and an error a billion times as large, the later stages give the same bits."""
    zoo: dict[str, Any] = {
        "lora": ({}, {}),
        "dora": ({"x.lora_magnitude_vector": torch.rand(7) + 0.5}, {"use_dora": True}),
    }
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": grid((7, 9), torch.bfloat16, "wide")})

    def all_open(values: Any, *rest: Any, **more: Any) -> Any:
        BF16.encode(values, *rest, **more)
        return np.arange(len(values))

    for name, (more, fields) in zoo.items():
        tensors = lora((7, 9), torch.float32, "random") | more
        adapter = write_adapter(tmp_path / name, tensors, r=R, lora_alpha=2, **fields)
        adaptertool.merge(checkpoint, [adapter], tmp_path / f"{name}-out")
        with monkeypatch.context() as patch:
            patch.setattr(correct_rounding, "UNIT", 2.0**-10)
            patch.setattr(block, "fused_of", lambda _: None)
            patch.setattr(stretch, "SMALL", 0)
            patch.setattr(blocks, "BY_DTYPE", {"BF16": dataclasses.replace(BF16, encode=all_open)})
            report = adaptertool.merge(checkpoint, [adapter], tmp_path / f"{name}-slow")
        assert report.settled > 5
        assert same_bits(*(load(tmp_path / f"{name}-{how}")["x.weight"] for how in ("out", "slow")))


def test_bad_numbers_are_told_at_once(tmp_path: Path) -> None:
    """Not after every other element of the block was settled one by one."""
    base = torch.randn(256, 256)
    base[3, 5] = float("inf")
    with pytest.raises(NonFiniteError, match=r"element \(3, 5\) holds inf"):
        merged(tmp_path / "inf", base, torch.randn(4, 256), torch.randn(256, 4))
    base[3] = 0
    tensors = {
        "x.lora_A.weight": torch.randn(4, 256), "x.lora_B.weight": torch.zeros(256, 4),
        "x.lora_magnitude_vector": torch.ones(256),
    }  # fmt: skip
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": base})
    adapter = write_adapter(tmp_path / "a", tensors, r=4, use_dora=True)
    with pytest.raises(NonFiniteError, match=r"element \(3, 0\).*not a number"):
        adaptertool.merge(checkpoint, [adapter], tmp_path / "out")


def test_signs_of_zeros_do_not_depend_on_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {
        "x.base_layer.weight": torch.full((6, 8), -0.0), "x.lora_A.weight": torch.randn(2, 8),
        "x.lora_B.weight": torch.tensor([[0.0, 0.0], [1.0, 2.0]]).repeat(3, 1),
    }  # fmt: skip
    checkpoint = write_checkpoint(tmp_path / "base", {"x.weight": torch.ones(6, 8)})
    adapter = write_adapter(tmp_path / "a", tensors, r=2, lora_alpha=2)
    adaptertool.merge(checkpoint, [adapter], tmp_path / "out")
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 8)
    adaptertool.merge(checkpoint, [adapter], tmp_path / "small")
    assert same_bits(load(tmp_path / "out")["x.weight"], load(tmp_path / "small")["x.weight"])


def test_settings_of_the_caller_do_not_matter(tmp_path: Path) -> None:
    base = torch.full((2, 4), 2.0**-130).bfloat16()
    a, b = torch.full((1, 4), 2.0**-66), torch.full((2, 1), 2.0**-66)
    torch.set_flush_denormal(True)
    try:
        found = merged(tmp_path, base, a, b)
    finally:
        torch.set_flush_denormal(False)
    require(found, summed(base, delta(a, b)))
