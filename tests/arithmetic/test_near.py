"""Fewer factors in the place of those of a product: the bytes are those that all of them make, also where little of
what they add up to is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, same_bits, write_checkpoint
from one_kind import write

import adaptertool
from adaptertool.arithmetic import fused
from adaptertool.arithmetic.requirements import near_of
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.tinylora import TINYLORA
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import Ref, TensorSpec

SIZE, RANK, COUNT = 48, 2, 6


def tinylora(folder: Path, p: torch.Tensor, v: torch.Tensor) -> Path:
    tensors = {"A": torch.randn(RANK, SIZE), "B": torch.randn(SIZE, RANK), "P": p}
    named = {f"{PREFIX}l.tinylora_{role}": tensor for role, tensor in tensors.items()}
    fields = {"peft_type": "TINYLORA", "r": RANK, "u": COUNT, "weight_tying": 1.0}
    return write(folder, {**named, "base_model.tinylora_v.0": v}, **fields)


def delora(folder: Path) -> Path:
    shapes: dict[str, Any] = {"A": (RANK, SIZE), "B": (SIZE, RANK), "lambda": (1,), "w_norm": (SIZE,)}
    tensors = {f"{PREFIX}l.delora_{role}": torch.randn(shape).abs() for role, shape in shapes.items()}
    return write(folder, tensors, peft_type="DELORA", r=RANK)


def made(folder: Path, how: str) -> Path:
    if how == "DeLoRA":
        return delora(folder)
    p, v = torch.randn(COUNT, RANK, RANK), torch.randn(COUNT)
    if how == "cancelled":  # what is left of the sum is its last bits
        p[1::2], v[1::2] = p[::2] * (1 + 2.0**-22), -v[::2]
        v *= 2.0**20
    if how == "nothing left":
        p[1::2], v[1::2] = p[::2], -v[::2]
    return tinylora(folder, p, v)


@pytest.mark.parametrize("how", ["TinyLoRA", "cancelled", "nothing left", "DeLoRA"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bytes_are_those_of_all_factors(
    tmp_path: Path, how: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(SIZE, SIZE) / 8
    weight[::5, ::3] = 0.0
    base, adapter = write_checkpoint(tmp_path / "base", {"l.weight": weight.to(dtype)}), made(tmp_path / "a", how)
    asked = []

    def seen(edit: Edit) -> Any:
        asked.append(near_of(edit))
        return asked[-1]

    monkeypatch.setattr(fused, "near_of", seen)
    for out, weights in (("near", ["1"]), ("half", ["0.3"])):
        adaptertool.merge(base, [adapter], tmp_path / out, weights=weights)
    assert not asked or any(asked)  # not asked where there is no kernel
    monkeypatch.setattr(fused, "near_of", lambda _: None)
    monkeypatch.setattr(fused, "FUNCTIONS", {})
    for out, weights in (("near", ["1"]), ("half", ["0.3"])):
        adaptertool.merge(base, [adapter], tmp_path / f"{out} by all", weights=weights)
        one, other = (load(tmp_path / name)["l.weight"] for name in (out, f"{out} by all"))
        assert same_bits(one, other)


def test_of_all_of_both_and_of_nothing_else() -> None:
    """Not of parts of the factors, of factors of others, of a transposed part, or in a view."""

    def stored(name: str, *shape: int) -> Ref:
        return Ref(Path("adapter"), 0, TensorSpec(name, "F32", shape, 0))

    factors = {
        "tinylora_A": stored("a", RANK, SIZE),
        "tinylora_B": stored("b", SIZE, RANK),
        "tinylora_P": stored("p", COUNT, RANK, RANK),
        "tinylora_v": stored("v", COUNT),
    }
    assert TINYLORA.becomes is not None
    (part,), (other,) = (TINYLORA.becomes(factors, (SIZE, SIZE), 1.0, {}) for _ in range(2))
    a, b = part.factors[A], part.factors[B]

    def found(**changed: Ref) -> Any:
        return near_of(Edit("lora", 0, "l", {A: a, B: b, **changed}, 1.0, 1.0))

    assert found() is not None
    assert found(**{A: other.factors[A]}) is None and found(**{A: stored("a", *a.shape)}) is None
    assert found(**{B: stored("b", *b.shape)}) is None and found(**{B: b.rows(0, 3)}) is None
    assert found(**{A: a.rows(1, 3)}) is None
