"""LoHa of convolutions in Tucker form against rationals, through every command."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from conftest import write_checkpoint
from one_kind import difference, require_commands, write
from oracle import fractions
from rationals import EVERY, Matrix

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

OUT, IN, R = 4, 3, 2


def random(kernel: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    cores = {f"hada_t{n}": (R, R, *kernel, 1)[:4] for n in (1, 2)}
    shapes = cores | {f"hada_w{n}_{side}": (R, size) for n in (1, 2) for side, size in (("a", OUT), ("b", IN))}
    return {role: (torch.randn(s) * 2.0 ** torch.randint(-9, 3, s)).to(dtype) for role, s in shapes.items()}


def exactly(factors: dict[str, torch.Tensor], places: int, scale: Fraction) -> Matrix:
    numbers = {role: [fractions(row) for row in tensor.reshape(R, -1)] for role, tensor in factors.items()}

    def element(n: int, o: int, i: int, t: int) -> Fraction:
        core, left, right = (numbers[role] for role in (f"hada_t{n}", f"hada_w{n}_a", f"hada_w{n}_b"))
        pairs = itertools.product(range(R), range(R))
        return sum((core[p][q * places + t] * left[p][o] * right[q][i] for p, q in pairs), Fraction())

    columns = list(itertools.product(range(IN), range(places)))
    return [[scale * element(1, o, i, t) * element(2, o, i, t) for i, t in columns] for o in range(OUT)]


@pytest.mark.parametrize("kernel", [(3, 2), (3,)])
@pytest.mark.parametrize("dtype", EVERY)
def test_every_command(
    tmp_path: Path, kernel: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors, stored = random(kernel, dtype), {"l.weight": torch.randn(OUT, IN, *kernel)}
    adapter = write(
        tmp_path / "a", {f"l.{role}": tensor for role, tensor in factors.items()}, peft_type="LOHA", r=R, alpha=3
    )
    change = exactly(factors, len(factors["hada_t1"].flatten()) // R**2, Fraction(3 / R))
    require_commands(tmp_path, stored, adapter, {"l.weight": difference(change)}, monkeypatch, lora=False)


def test_what_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(
        tmp_path / "base", {"l.weight": torch.randn(OUT, IN, 3, 2), "line.weight": torch.randn(OUT, IN)}
    )
    usual = random((3, 2), torch.float32)
    for number, (layer, changes, error) in enumerate(
        [
            ("l", {"hada_t1": None}, InputError),
            ("l", {"hada_t1": None, "hada_t2": None}, MismatchError),
            ("l", {"hada_t1": torch.ones(R, R, 2, 3)}, MismatchError),
            ("l", {"hada_t1": torch.ones(R, R)}, MismatchError),
            ("l", {"hada_w1_a": torch.ones(OUT, R)}, MismatchError),
            ("l", {"hada_w1_b": torch.ones(R + 1, IN)}, MismatchError),
            ("line", {}, UnsupportedError),
        ]
    ):
        factors = {f"{layer}.{role}": t for role, t in {**usual, **changes}.items() if t is not None}
        adapter = write(tmp_path / f"{number}", factors, peft_type="LOHA", r=R, alpha=2)
        with pytest.raises(error):
            adaptertool.merge(base, [adapter], tmp_path / "out")
        adaptertool.inspect(adapter, base)
