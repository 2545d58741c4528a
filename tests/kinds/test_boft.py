"""BOFT against rationals, through every command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, write_checkpoint
from one_kind import Formula, flat, require_commands, write
from peft.tuners.boft.layer import BOFTLayer
from rationals import EVERY, Matrix, matrix, require
from skews import cayley, times

import adaptertool
from adaptertool.errors import AdapterToolError, InputError, MismatchError, UnsupportedError

OUT, COLUMNS, WIDE = 5, 16, 4
FIELDS = {"peft_type": "BOFT", "boft_block_size": WIDE, "boft_block_num": 0, "boft_dropout": 0.1}


def places(stage: int, stages: int) -> list[int]:
    """By PEFT's own function."""
    given = COLUMNS, COLUMNS // WIDE // 2**stage, WIDE // 2, stages - 1
    return BOFTLayer.block_butterfly_perm(None, *given).tolist()  # type: ignore[arg-type]


def formula_of(stored: torch.Tensor, numbers: torch.Tensor) -> Formula:
    """s ⊙ (W·B[0]ᵀ·B[1]ᵀ·...), B[i] = P·D·Pᵀ, where row j of P has its 1 in column p[j]."""
    factors = [Fraction(number) for number in numbers.reshape(-1).tolist()]

    def formula(w: Matrix) -> Matrix:
        rows = np.array(w)
        for stage, some in enumerate(stored):
            exact = np.full((COLUMNS, COLUMNS), Fraction())
            for k, block in enumerate(some):
                a = np.frompyfunc(Fraction, 1, 1)(block.double().numpy())
                at = slice(k * WIDE, (k + 1) * WIDE)
                exact[at, at] = cayley((a.T - a) / 2)
            place = places(stage, len(stored))
            rows = times(rows, exact[np.ix_(place, place)].T)
        return [[factor * x for x in row] for factor, row in zip(factors, rows, strict=True)]

    return formula


@pytest.mark.long("stages")
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("stages", [1, 3])
def test_every_command(tmp_path: Path, dtype: torch.dtype, stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = stages, COLUMNS // WIDE, WIDE, WIDE
    blocks = (torch.randn(size) * 2.0 ** torch.randint(-9, 3, size)).to(dtype)
    numbers = torch.randn(OUT, 1).to(dtype)
    stored = {"l.weight": torch.randn(OUT, COLUMNS).to(torch.bfloat16), "l.bias": torch.randn(OUT)}
    adapter = write(tmp_path / "a", {"l.boft_R": blocks, "l.boft_s": numbers}, **FIELDS)
    require_commands(tmp_path, stored, adapter, {"l.weight": formula_of(blocks, numbers)}, monkeypatch)


def test_convolutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, numbers = torch.randn(2, COLUMNS // WIDE, WIDE, WIDE), torch.randn(1, OUT)
    stored = {"l.weight": torch.randn(OUT, 4, 2, 2), "l.bias": torch.randn(OUT)}
    adapter = write(tmp_path / "a", {"l.boft_R": blocks, "l.boft_s": numbers}, **FIELDS)
    formulas = {"l.weight": formula_of(blocks, numbers)}
    require_commands(tmp_path, stored, adapter, formulas, monkeypatch, lora=False)


def test_a_part_of_a_fused_tensor(tmp_path: Path) -> None:
    """Its rows are turned by the same blocks, and have numbers of their own."""
    name = "model.layers.0.self_attn.qkv_proj.weight"
    stored = {name: torch.randn(3 * OUT, COLUMNS)}
    base = write_checkpoint(tmp_path / "base", stored)
    (base / "config.json").write_text('{"model_type": "phi3", "tie_word_embeddings": false, "hidden_size": 5, '
                                      '"num_attention_heads": 1, "num_key_value_heads": 1}')  # fmt: skip
    blocks, numbers = torch.randn(1, COLUMNS // WIDE, WIDE, WIDE), torch.randn(OUT, 1)
    keys = {
        f"model.layers.0.self_attn.k_proj.{key}": tensor for key, tensor in (("boft_R", blocks), ("boft_s", numbers))
    }
    adaptertool.merge(base, [write(tmp_path / "a", keys, **FIELDS)], tmp_path / "out")
    exact = matrix(stored[name])
    exact[OUT : 2 * OUT] = formula_of(blocks, numbers)(exact[OUT : 2 * OUT])
    require(flat(load(tmp_path / "out")[name]), exact, stored[name])


@pytest.mark.parametrize(
    ("size", "rows", "fields", "error"),
    [
        ((1, 3, 4, 4), (OUT, 1), {}, MismatchError),
        ((1, 4, 4, 2), (OUT, 1), {}, AdapterToolError),
        ((1, 4, 4, 4), (1, OUT), {}, MismatchError),
        ((1, 4, 4, 4), (OUT + 1, 1), {}, MismatchError),
        ((4, 4, 4, 4), (OUT, 1), {}, UnsupportedError),
        ((1, 5, 3, 3), (OUT, 1), {}, UnsupportedError),
        ((4, 4, 4), (OUT, 1), {}, UnsupportedError),
        ((0, 4, 4, 4), (OUT, 1), {}, AdapterToolError),
        ((1, 4, 4, 4), None, {}, InputError),
        ((1, 4, 4, 4), (OUT, 1), {"unknown": 1}, UnsupportedError),
    ],
)
def test_what_is_refused(
    tmp_path: Path, size: tuple[int, ...], rows: Any, fields: dict[str, Any], error: type[Exception]
) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, COLUMNS)})
    tensors = {"l.boft_R": torch.ones(size)} | ({} if rows is None else {"l.boft_s": torch.ones(rows)})
    adapter = write(tmp_path / "a", tensors, **FIELDS | fields)
    with pytest.raises(error):
        adaptertool.merge(base, [adapter], tmp_path / "out")
