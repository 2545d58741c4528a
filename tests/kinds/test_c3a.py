"""C3A against rationals, through every command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_checkpoint
from one_kind import difference, require_commands, write
from rationals import EVERY

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

DOWN, ACROSS, BLOCK = 2, 3, 4


@pytest.mark.parametrize("dtype", EVERY)
def test_every_command(tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """1/12 is no float64: the nearest counts."""
    kernel = (torch.randn(DOWN, ACROSS, BLOCK) * 2.0 ** torch.randint(-12, 5, (DOWN, ACROSS, BLOCK))).to(dtype)
    out, inner = DOWN * BLOCK, ACROSS * BLOCK
    change = [
        [Fraction(kernel[o // BLOCK, i // BLOCK, (i - o) % BLOCK].item()) * Fraction(1 / inner) for i in range(inner)]
        for o in range(out)
    ]
    stored = {"l.weight": torch.randn(out, inner).to(torch.float16), "l.bias": torch.randn(out)}
    adapter = write(tmp_path / "a", {"l.c3a_kernel": kernel}, peft_type="C3A", block_size=BLOCK)
    require_commands(tmp_path, stored, adapter, {"l.weight": difference(change)}, monkeypatch)


@pytest.mark.parametrize(
    ("shape", "fields", "error"),
    [
        ((3, 2, 4), {}, MismatchError),
        ((2, 3, 8), {}, MismatchError),
        ((2, 3, 3), {}, MismatchError),
        ((4, 6, 4), {}, MismatchError),
        ((2, 3, 0), {}, InputError),
        ((2, 12), {}, UnsupportedError),
        ((2, 3, 4), {"bias": "lora_only"}, UnsupportedError),
        ((2, 3, 4), {"fan_out": 1}, UnsupportedError),
    ],
)
def test_what_is_refused(
    tmp_path: Path, shape: tuple[int, ...], fields: dict[str, Any], error: type[Exception]
) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(DOWN * BLOCK, ACROSS * BLOCK)})
    adapter = write(tmp_path / "a", {"l.c3a_kernel": torch.ones(shape)}, peft_type="C3A", **fields)
    with pytest.raises(error):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    adaptertool.inspect(adapter, base)
