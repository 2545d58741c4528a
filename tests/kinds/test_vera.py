"""VeRA against rationals, and in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX
from one_kind import (
    IN,
    JOINED,
    OUT,
    PART,
    Numbers,
    base_of,
    every_dtype,
    normal,
    own,
    scaled,
    times,
    try_chain,
    try_commands,
    try_joined,
    try_leading_part,
    try_merges,
    try_part,
    varied,
    vector,
    write,
)
from rationals import Matrix, matrix
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

RANK = 3


def one_layer(
    folder: Path, dtype: torch.dtype = torch.float32, layer: str = "l", make: Numbers = normal, **fields: Any
) -> Path:
    """The shared matrices are larger than the layer."""
    tensors = {
        f"{layer}.vera_lambda_b": make(OUT, dtype=dtype),
        f"{layer}.vera_lambda_d": make(RANK, dtype=dtype),
        "base_model.vera_A": make(RANK, IN + 2, dtype=dtype),
        "base_model.vera_B": make(OUT + 1, RANK, dtype=dtype),
    }
    return write(folder, tensors, **{"peft_type": "VERA", "r": RANK, **fields})


def change_of(adapter: Path, layer: str = "l") -> Matrix:
    found = own(adapter, layer)
    left = scaled(vector(found["vera_lambda_b"]), matrix(found["vera_B"][:OUT]))
    return times(left, scaled(vector(found["vera_lambda_d"]), matrix(found["vera_A"][:, :IN])))


@every_dtype
def test_every_element_is_the_rounding_of_the_formula(tmp_path: Path, dtype: torch.dtype, factors: torch.dtype) -> None:
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors, make=varied)
    try_merges(tmp_path, base, adapter, change_of(adapter))
    try_chain(tmp_path, base, adapter, change_of(adapter))


def test_on_projections_that_are_stored_apart(tmp_path: Path) -> None:
    adapter = one_layer(tmp_path / "a", layer=JOINED)
    try_joined(tmp_path, adapter, change_of(adapter, JOINED))


def test_every_command(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a")
    try_commands(tmp_path, base, adapter, "vera")
    try_leading_part(tmp_path, base, adapter, "vera")


def test_on_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    """Its rows of the shared matrix are the first ones."""
    adapter = one_layer(tmp_path / "a", layer=PART)
    try_part(tmp_path, adapter, change_of(adapter, PART))


def test_what_cannot_be_known_is_refused_by_name(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    for number, (fields, message) in enumerate(
        [
            ({"save_projection": False}, "save_projection = false: what PEFT draws by chance"),
            ({"quite_new": 1}, "quite_new"),
            ({"bias": "lambda_only"}, "bias"),
            ({"r": "3"}, "r must be a whole number"),
        ]
    ):
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [one_layer(tmp_path / f"{number}", **fields)], tmp_path / "out")
    path = one_layer(tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, lacking in (("base_model.vera_A", "vera_A"), (f"{PREFIX}l.vera_lambda_d", "vera_lambda_d")):
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, path)
        with pytest.raises(InputError, match=f"has no {lacking}"):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    save_file(tensors | {f"{PREFIX}l.vera_lambda_c": torch.ones(2)}, path)
    with pytest.raises(InputError, match="vera_lambda_c"):
        adaptertool.merge(base, [path.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("role", "shape"),
    [
        ("l.vera_lambda_b", (OUT + 1,)),
        ("l.vera_lambda_b", (OUT, 1)),
        ("l.vera_lambda_d", (RANK - 1,)),
        ("base_model.vera_A", (RANK, IN - 1)),
        ("base_model.vera_A", (RANK,)),
        ("base_model.vera_B", (OUT - 1, RANK)),
        ("base_model.vera_B", (OUT, RANK + 1)),
    ],
    ids=str,
)
def test_wrong_shapes_are_refused(tmp_path: Path, role: str, shape: tuple[int, ...]) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a")
    path = adapter / "adapter_model.safetensors"
    key = role if role.startswith("base_model.") else PREFIX + role
    save_file({**load_file(path), key: torch.ones(shape)}, path)
    with pytest.raises((MismatchError, UnsupportedError)):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    assert not adaptertool.inspect(adapter, base).fits
