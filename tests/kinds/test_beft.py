"""BEFT against rationals, through every command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import write_checkpoint
from one_kind import difference, require_commands, write
from rationals import EVERY, matrix

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

EXTREME = torch.tensor([[1e-30, -1.0, 3.0e4, 2.0**-24 + 1, 0.0, 0.1]])


@pytest.mark.parametrize("factors", EVERY)
def test_every_command(tmp_path: Path, factors: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    change = EXTREME.to(factors)
    adapter = write(tmp_path / "a", {"l.beft_bias": change}, peft_type="BEFT", init_weights=True)
    stored = {"l.weight": torch.randn(6, 4), "l.bias": torch.randn(6).bfloat16()}
    formulas = {"l.bias": difference(matrix(change.reshape(-1, 1)))}
    require_commands(tmp_path, stored, adapter, formulas, monkeypatch, lora=False)


@pytest.mark.parametrize(
    ("tensors", "fields", "error", "words"),
    [
        ({"l.beft_bias": torch.ones(1, 5)}, {}, MismatchError, "must be 1×6"),
        ({"l.beft_bias": torch.ones(6)}, {}, MismatchError, "must be 1×6"),
        ({"l.beft_bias": torch.ones(1, 6)}, {"x": 1}, UnsupportedError, "x = 1: this field is not known"),
        ({"n.beft_bias": torch.ones(1, 6)}, {}, UnsupportedError, "n has no bias in the base"),
        ({"l.beft_bias": torch.ones(1, 6).int()}, {}, UnsupportedError, "is I32"),
        ({"l.beft_bias": torch.ones(1, 6), "l.lora_A.weight": torch.ones(1, 4)}, {}, UnsupportedError, "lora_A"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], fields: dict[str, int], error: type[InputError], words: str
) -> None:
    stored = {"l.weight": torch.zeros(6, 4), "l.bias": torch.zeros(6), "n.weight": torch.zeros(6, 4)}
    base = write_checkpoint(tmp_path / "base", stored)
    with pytest.raises(error, match=words):
        adaptertool.merge(base, [write(tmp_path / "a", tensors, peft_type="BEFT", **fields)], tmp_path / "out")
