"""FRoD against rationals, of an inverse in float64, through every command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tensors, load, write_checkpoint
from one_kind import Formula, own, require_commands, times, write
from rationals import Matrix, matrix

import adaptertool
from adaptertool.errors import InputError, UnsupportedError

OUT, IN = 7, 5
PLACES = torch.tensor([[0, 3, 3, 4], [2, 0, 0, 1]])


def tensors(dtype: torch.dtype = torch.float32, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Those of one layer, `l`; of one place there are two numbers."""
    return {
        "l.frod_lambda_l": torch.randn(IN).abs(),
        "l.frod_lambda_s_values": torch.randn(PLACES.shape[1]),
        "base_model.frod_V.l": torch.randn(IN, IN).to(dtype),
        "base_model.frod_s_indices.l": PLACES,
        "base_model.frod_s_size.l": torch.tensor([IN, IN]),
        **more,
    }


def one_layer(folder: Path, stored: Tensors, **more: Any) -> Path:
    return write(folder, dict(stored), **{"peft_type": "FROD", "save_projection": True, **more})


def formula_of(adapter: Path, weight: torch.Tensor) -> Formula:
    """U·(S + diag(λ))·Vᵀ, whatever it finds."""
    found = own(adapter)
    v = found["frod_V.l"].double()
    columns = np.linalg.solve(v.numpy(), weight.double().numpy().T)
    u = torch.from_numpy((columns / np.sqrt((columns * columns).sum(1))[:, None]).T).float().to(found["frod_V.l"].dtype)
    middle = torch.diag(found["frod_lambda_l"].double()).index_put(
        tuple(PLACES), found["frod_lambda_s_values"].double(), accumulate=True
    )
    made: Matrix = times(times(matrix(u), matrix(middle)), matrix(v.T))
    return lambda _: made


@pytest.mark.parametrize(
    ("dtype", "of_v"),
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32), (torch.bfloat16, torch.float16)],
    ids=str,
)
def test_every_command(tmp_path: Path, dtype: torch.dtype, of_v: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, adapter = torch.randn(OUT, IN).to(dtype), one_layer(tmp_path / "a", tensors(of_v))
    formulas = {"l.weight": formula_of(adapter, weight)}
    require_commands(tmp_path, {"l.weight": weight, "rest": torch.ones(3)}, adapter, formulas, monkeypatch, lora=False)


def test_float32_is_right_to_its_last_bit(tmp_path: Path) -> None:
    weight = torch.randn(OUT, IN)
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight})
    adapter = one_layer(tmp_path / "a", tensors())
    adaptertool.merge(base, [adapter], tmp_path / "out")
    found = load(tmp_path / "out")["l.weight"]
    exact = torch.tensor([[float(x) for x in row] for row in formula_of(adapter, weight)([[Fraction()]])])
    torch.testing.assert_close(found, exact, atol=2e-7, rtol=2e-7)


@pytest.mark.parametrize(
    ("stored", "fields", "message"),
    [
        ({}, {"save_projection": False}, "save_projection is not true, so V is not in its file"),
        ({}, {"quite_new": 1}, "quite_new"),
        ({"base_model.frod_s_indices.l": PLACES + 1}, {}, "places outside of 5 x 5"),
        ({"base_model.frod_s_size.l": torch.tensor([IN, IN + 1])}, {}, "says another size"),
        ({"base_model.frod_V.l": torch.ones(IN, IN)}, {}, "has no inverse"),
        ({"base_model.frod_V.l": torch.eye(IN) * torch.tensor([1, 1, 1, 1, 1e-12])}, {}, "has no inverse"),
        ({"base_model.frod_V.l": torch.randn(IN, IN + 1)}, {}, "frod_V"),
        ({"base_model.frod_V.other": torch.randn(IN, IN)}, {}, r"frod_V\.other belongs to no module"),
        ({"l.frod_lambda_l": torch.randn(IN + 1)}, {}, "frod_lambda_l"),
        ({"l.frod_lambda_l": torch.tensor([1, 1, float("nan"), 1, 1])}, {}, "frod_lambda_l"),
    ],
)
def test_what_is_refused(tmp_path: Path, stored: Tensors, fields: dict[str, Any], message: str) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    with pytest.raises((InputError, UnsupportedError), match=message):
        adaptertool.merge(base, [one_layer(tmp_path / "a", tensors(**stored), **fields)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    for key in ("base_model.frod_V.l", "base_model.frod_s_size.l", "l.frod_lambda_s_values"):
        some = {name: tensor for name, tensor in tensors().items() if name != key}
        adapter = one_layer(tmp_path / key, some)
        role = key.removeprefix("base_model.").removeprefix("l.").removesuffix(".l")
        with pytest.raises(InputError, match=f"module l has no {role}"):
            adaptertool.merge(base, [adapter], tmp_path / "out")


def test_layers_of_one_sort(tmp_path: Path) -> None:
    """They have one V."""
    stored = {key.replace("l.frod_l", "m.0.l.frod_l"): tensor for key, tensor in tensors().items()}
    stored |= {
        key.replace("m.0.l.", "m.1.l."): tensor * 2 for key, tensor in stored.items() if key.startswith("m.0.l.")
    }
    weight = torch.randn(OUT, IN)
    base = write_checkpoint(tmp_path / "base", {f"m.{i}.l.weight": weight.clone() for i in range(2)})
    adaptertool.merge(base, [one_layer(tmp_path / "a", stored)], tmp_path / "out")
    one, two = (load(tmp_path / "out")[f"m.{i}.l.weight"] for i in range(2))
    torch.testing.assert_close(2 * one, two)
