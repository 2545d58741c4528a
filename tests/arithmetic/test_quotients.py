"""Edits of weights that are quotients (÷ 127, ÷ a global scale): rounded once from the rational, also where float64
lands on the middle of two numbers, and the rational beside it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load, write_adapter, write_checkpoint
from oracle import fractions, round_fraction
from quantised_bases import X, e4m3, group, nibbles
from rationals import Matrix

import adaptertool as library

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
ROWS, COLUMNS = 4, 64
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def int8() -> tuple[dict[str, torch.Tensor], dict[str, object], Matrix]:
    codes, sizes = torch.randint(-127, 128, (ROWS, COLUMNS)).to(torch.int8), torch.rand(ROWS) + 0.5
    exact = [[Fraction(int(q)) * Fraction(sizes[i].item()) / 127 for q in row] for i, row in enumerate(codes)]
    return {"weight": codes, "SCB": sizes}, {"quant_method": "bitsandbytes", "load_in_8bit": True}, exact


def nvfp4() -> tuple[dict[str, torch.Tensor], dict[str, object], Matrix]:
    codes, scale = torch.randint(0, 256, (ROWS, COLUMNS // 2)).to(torch.uint8), e4m3(ROWS, COLUMNS // 16)
    whole = torch.tensor([1234.567])
    values = [[Fraction((-1 if code >= 8 else 1) * E2M1[code % 8]) for code in row] for row in nibbles(codes)]
    exact = [[v * Fraction(scale[i, j // 16].item()) / Fraction(whole.item()) for j, v in enumerate(row)]
             for i, row in enumerate(values)]  # fmt: skip
    return {"weight_packed": codes, "weight_scale": scale, "weight_global_scale": whole}, group(num_bits=4), exact


def to_the_middle(exact: Matrix, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, columns), B (rows, r): their product is what float64's W lacks to the middle of two numbers beside it, in
    parts of few bits; of one row in turn, so that each has its own."""
    near = torch.tensor([[float(w) for w in row] for row in exact], dtype=torch.float64)
    low = torch.nextafter(near.to(dtype), torch.tensor(0, dtype=dtype))
    high = torch.nextafter(low, torch.full_like(low, torch.inf))
    missing = torch.where(near == 0, 0, (low.double() + high.double()) / 2 - near)
    parts, b = [], []
    for row in range(len(exact)):
        rest = missing[row]
        for _ in range(3):
            parts.append(rest.float())
            rest = rest - rest.float().double()
            b.append([float(row == place) for place in range(len(exact))])
        assert not rest.any()
    return torch.stack(parts), torch.tensor(b).T.contiguous()


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("make", [int8, nvfp4])
def test_middles_of_two_numbers(tmp_path: Path, make: object, dtype: str) -> None:
    torch.manual_seed(0)
    tensors, said, exact = make()  # type: ignore[operator]
    named = {f"{X}.{name}": tensor for name, tensor in tensors.items()}
    base = write_checkpoint(tmp_path / "base", named, config=CONFIG | {"quantization_config": said})
    target = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    a, b = to_the_middle(exact, target)
    factors = {f"{X}.lora_A.weight": a, f"{X}.lora_B.weight": b}
    adapter = write_adapter(tmp_path / "adapter", factors, r=12, lora_alpha=12)
    report = library.merge(base, [adapter], tmp_path / "out", dtype=dtype, verify=True)
    parts = [[Fraction(number) for number in row] for row in a.tolist()]
    made = [[w + sum(parts[3 * i + p][j] for p in range(3)) for j, w in enumerate(row)] for i, row in enumerate(exact)]
    wanted = [round_fraction(value, target) for row in made for value in row]
    assert fractions(load(tmp_path / "out")[f"{X}.weight"]) == wanted
    rounded = [
        [Fraction(float(w)) + d - w for w, d in zip(*rows, strict=True)] for rows in zip(exact, made, strict=True)
    ]
    by_float64 = [round_fraction(value, target) for row in rounded for value in row]
    assert by_float64 != wanted and report.settled_one_by_one > ROWS * COLUMNS // 2
    half = library.wise(base, adapter, tmp_path / "half", 0.5, dtype=dtype, verify=True)
    between = [(w + m) / 2 for rows in zip(exact, made, strict=True) for w, m in zip(*rows, strict=True)]
    assert fractions(load(tmp_path / "half")[f"{X}.weight"]) == [round_fraction(value, target) for value in between]
    assert half.tensors_edited == 1


def test_norms_are_those_of_the_rationals(tmp_path: Path) -> None:
    """DoRA whose magnitudes are the norms, of a row of one element: W' = m·sign(W), just where it is to be rounded."""
    tensors, said, exact = int8()
    named = {f"{X}.{name}": tensor for name, tensor in tensors.items()}
    base = write_checkpoint(tmp_path / "base", named, config=CONFIG | {"quantization_config": said})
    magnitude = torch.rand(ROWS) + 1
    factors = {f"{X}.lora_A.weight": torch.randn(2, COLUMNS), f"{X}.lora_B.weight": torch.zeros(ROWS, 2),
               f"{X}.lora_magnitude_vector": magnitude}  # fmt: skip
    adapter = write_adapter(tmp_path / "adapter", factors, r=2, use_dora=True)
    library.merge(base, [adapter], tmp_path / "out", dtype="f32", verify=True)
    rows = np.array([[float(w) for w in row] for row in exact], np.longdouble)
    norms = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    wanted = (magnitude.numpy().astype(np.longdouble)[:, None] * rows / norms).astype(np.float32)
    assert np.array_equal(load(tmp_path / "out")[f"{X}.weight"].numpy(), wanted)


def test_elements_that_are_0_are_no_quotients(tmp_path: Path) -> None:
    """Rows that no factor reaches, of codes of 0: they are settled many at once."""
    codes = torch.zeros(64, COLUMNS, dtype=torch.int8)
    named = {f"{X}.weight": codes, f"{X}.SCB": torch.ones(64)}
    said = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    base = write_checkpoint(tmp_path / "base", named, config=CONFIG | {"quantization_config": said})
    factors = {f"{X}.lora_A.weight": torch.randn(2, COLUMNS), f"{X}.lora_B.weight": torch.zeros(64, 2)}
    adapter = write_adapter(tmp_path / "adapter", factors, r=2)
    report = library.merge(base, [adapter], tmp_path / "out", dtype="bf16")
    found = load(tmp_path / "out")[f"{X}.weight"]
    assert not found.any() and not found.signbit().any() and report.settled_one_by_one == 0


def test_double_double_looks_at_all_that_would_else_be_rationals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it decides nothing of the first rows, which are middles: for quotients there are no long numbers."""
    monkeypatch.setattr("adaptertool.arithmetic.elements._PART", 8 * COLUMNS)
    codes, sizes = torch.randint(-127, 128, (64, COLUMNS)).to(torch.int8), torch.rand(64) + 0.5
    codes[:16], sizes[:16] = 127, 1 + 2.0**-8
    base = write_checkpoint(
        tmp_path / "base",
        {f"{X}.weight": codes, f"{X}.SCB": sizes},
        config=CONFIG | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    )
    a, b = torch.ones(1, COLUMNS), torch.zeros(64, 1)
    b[-1] = 2.0**60  # so large that float64 leaves all of the block open
    factors = {f"{X}.lora_A.weight": a, f"{X}.lora_B.weight": b}
    adapter = write_adapter(tmp_path / "adapter", factors, r=1, lora_alpha=1)
    report = library.merge(base, [adapter], tmp_path / "out", dtype="bf16")
    assert load(tmp_path / "out")[f"{X}.weight"][:16].eq(1).all()
    assert 16 * COLUMNS <= report.settled_one_by_one < 17 * COLUMNS
