"""Super-Tuning and Supra against rationals, through every command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_checkpoint
from one_kind import difference, require_commands, write
from oracle import fractions
from rationals import EVERY, Matrix, delta

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

OUT, IN = 6, 4
PLACES = [1, 3, 8, 20, 23]
EXTREME = [1e-30, -1.0, 3.0e4, 2.0**-24 + 1, 0.0]


def saved(values: torch.Tensor, places: torch.Tensor, **factors: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {f"l.supertuning_lora_{name}.weight": factor for name, factor in factors.items()}
    return {"l.supertuning_values": values, "l.supertuning_indices": places, **named}


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("factors", EVERY)
def test_every_command(tmp_path: Path, factors: torch.dtype, rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    values, places = torch.tensor(EXTREME).to(factors), torch.tensor(PLACES, dtype=torch.int32)[[3, 0, 4, 1, 2]]
    pair = {} if rank is None else {"A": torch.randn(rank, IN).to(factors), "B": torch.randn(OUT, rank).to(factors)}
    fields: dict[str, Any] = {"r": rank, "lora_alpha": 3.0 if rank else None, "sparsity": 0.8, "select_top": True}
    adapter = write(tmp_path / "a", saved(values, places, **pair), peft_type="SUPERTUNING", **fields)
    change: Matrix = [[Fraction()] * IN for _ in range(OUT)]
    for value, place in zip(fractions(values), places.tolist(), strict=True):
        change[place // IN][place % IN] += value
    if rank is not None:
        low = delta(pair["A"], pair["B"])
        change = [
            [x + Fraction(3, 2) * y for x, y in zip(*rows, strict=True)] for rows in zip(change, low, strict=True)
        ]
    stored = {"l.weight": torch.randn(OUT, IN), "l.bias": torch.ones(OUT)}
    require_commands(tmp_path, stored, adapter, {"l.weight": difference(change)}, monkeypatch)


GOOD = saved(torch.ones(3), torch.tensor([0, 5, 23], dtype=torch.int32))
PAIR = {"A": torch.ones(2, IN), "B": torch.ones(OUT, 2)}


@pytest.mark.parametrize(
    ("tensors", "fields", "error", "words"),
    [
        *((saved(torch.ones(3), torch.tensor(places, dtype=torch.int32)), {}, InputError, words) for places, words in (
            ([0, 5, 24], "holds 24, no place in a weight of 6 × 4"), ([0, -1, 2], "holds -1, no place"),
            ([0, 5, 5], "names one element of the weight twice"))),
        (saved(torch.ones(3), torch.tensor([0.0, 0.5, 1.0])), {}, InputError, "holds 0.5, no place"),
        (saved(torch.ones(2), GOOD["l.supertuning_indices"]), {}, MismatchError, "supertuning_indices must be 2"),
        (saved(torch.ones(3, 1), GOOD["l.supertuning_indices"]), {}, UnsupportedError, "not supported"),
        ({"l.supertuning_values": torch.ones(3)}, {}, InputError, "has no supertuning_indices"),
        ({"l.supertuning_values": torch.ones(3)}, {"save_precomputed_indices": False}, UnsupportedError,
         "does not tell"),
        (GOOD, {"r": 2, "lora_alpha": 4}, MismatchError, "r is 2 in the config, and the file holds no LoRA"),
        (GOOD | saved(**{"values": GOOD["l.supertuning_values"], "places": GOOD["l.supertuning_indices"]}, **PAIR), {},
         MismatchError, "r is None in the config, and the file holds a LoRA of rank 2"),
        (GOOD, {"r": 0}, UnsupportedError, "r = 0 is no rank"),
        (GOOD, {"r": "2"}, UnsupportedError, "r = 2 is no rank"),
        (GOOD, {"r": 2}, InputError, "scale of SUPERTUNING cannot be computed"),
        (GOOD | {"l.supertuning_lora_A.weight": torch.ones(2, IN)}, {"r": 2, "lora_alpha": 4}, UnsupportedError,
         "not supported"),
        (GOOD | {"l.supertuning_lora_A.weight": torch.ones(2, IN), "l.supertuning_lora_B.weight": torch.ones(2, OUT)},
         {"r": 2, "lora_alpha": 4}, MismatchError, "supertuning_lora_B.weight must be 6×2"),
        (GOOD | {"l.supertuning_lora_A.weight": torch.tensor(1.0), "l.supertuning_lora_B.weight": torch.ones(OUT, 2)},
         {"r": 2, "lora_alpha": 4}, UnsupportedError, "not supported"),
        (GOOD, {"x": 1}, UnsupportedError, "x = 1: this field is not known"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], fields: dict[str, Any], error: type[InputError], words: str
) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.zeros(OUT, IN)})
    with pytest.raises(error, match=words):
        adaptertool.merge(base, [write(tmp_path / "a", tensors, peft_type="SUPERTUNING", **fields)], tmp_path / "out")
