"""SHiRA against rationals, through every command."""

from __future__ import annotations

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

OUT, IN = 6, 4
PLACES = torch.tensor([[0, 0, 2, 5, 5], [1, 3, 0, 0, 3]], dtype=torch.int32)
EXTREME = [1e-30, -1.0, 3.0e4, 2.0**-24 + 1, 0.0]


def dense(values: torch.Tensor, places: torch.Tensor, shape: tuple[int, int] = (OUT, IN)) -> Matrix:
    change = [[Fraction()] * shape[1] for _ in range(shape[0])]
    for value, i, j in zip(fractions(values), *places.long().tolist(), strict=True):
        change[i][j] = value
    return change


@pytest.mark.parametrize("factors", EVERY)
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 4, 1, 2]], ids=["sorted", "unsorted"])
def test_every_command(tmp_path: Path, factors: torch.dtype, order: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the indices as floats, as PEFT saves them on Windows."""
    values, places = torch.tensor(EXTREME).to(factors), PLACES[:, order].to(torch.float32 if order[0] else torch.int64)
    adapter = write(
        tmp_path / "a",
        {"l.shira_weight": values, "l.shira_indices": places},
        peft_type="SHIRA",
        r=1,
        mask_type="random",
    )
    stored = {"l.weight": torch.randn(OUT, IN), "l.bias": torch.ones(OUT)}
    require_commands(tmp_path, stored, adapter, {"l.weight": difference(dense(values, places))}, monkeypatch)


@pytest.mark.parametrize(("name", "turned"), [("h.0.attn.c_proj", True), ("h.0.attn.c_attn", True), ("l", False)])
def test_weights_that_may_be_stored_transposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, turned: bool
) -> None:
    """No shape of the factors tells: the family of the model and the names do."""
    values, places = torch.randn(5), PLACES
    adapter = write(
        tmp_path / "a", {f"{name}.shira_weight": values, f"{name}.shira_indices": places}, peft_type="SHIRA", r=1
    )
    change = dense(values, places)
    change = [list(column) for column in zip(*change, strict=True)] if turned else change
    stored = {f"{name}.weight": torch.randn(len(change), len(change[0])).bfloat16()}
    config = '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}'
    require_commands(
        tmp_path, stored, adapter, {f"{name}.weight": difference(change)}, monkeypatch, config=config, lora=False
    )


def test_what_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    good = {"l.shira_weight": torch.ones(5), "l.shira_indices": PLACES}
    for number, (tensors, fields, error, message) in enumerate(
        [
            ({"l.shira_indices": PLACES + 1}, {}, InputError, "no place in a weight of 6 × 4"),
            ({"l.shira_indices": PLACES - 1}, {}, InputError, "-1, no place"),
            ({"l.shira_indices": PLACES + 0.5}, {}, InputError, "0.5, no place"),
            ({"l.shira_indices": PLACES * 0}, {}, InputError, "twice"),
            ({"l.shira_indices": PLACES[:, 1:]}, {}, MismatchError, "must be 2"),
            ({"l.shira_indices": PLACES.bool()}, {}, UnsupportedError, "BOOL"),
            ({"l.shira_weight": PLACES[0]}, {}, UnsupportedError, "I32"),
            ({"l.shira_weight": torch.ones(5, 1)}, {}, UnsupportedError, "shira"),
            ({"l.shira_weight": torch.full((5,), torch.nan)}, {}, InputError, "nan"),
            ({}, {"alpha": 2}, UnsupportedError, "alpha"),
        ]
    ):
        adapter = write(tmp_path / f"{number}", {**good, **tensors}, peft_type="SHIRA", r=1, **fields)
        with pytest.raises(error, match=message):
            adaptertool.merge(base, [adapter], tmp_path / "out")
        adaptertool.inspect(adapter, base)
    lone = write(tmp_path / "lone", {"l.shira_weight": torch.ones(5)}, peft_type="SHIRA", r=1)
    with pytest.raises(InputError, match="has no shira_indices"):
        adaptertool.merge(base, [lone], tmp_path / "out")
