"""RandLoRA against rationals, and in every command."""

from __future__ import annotations

from fractions import Fraction
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
    TURNED,
    Numbers,
    base_of,
    every_dtype,
    normal,
    own,
    try_chain,
    try_commands,
    try_joined,
    try_leading_part,
    try_merges,
    try_part,
    try_turned,
    varied,
    write,
)
from rationals import Matrix
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

RANK, ALPHA, BASES = 4, 3, 2  # 2·4 is more than 6: the last of the bases is not needed whole


def one_layer(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    layer: str = "l",
    make: Numbers = normal,
    size: tuple[int, int] = (OUT, IN),
    **fields: Any,
) -> Path:
    """The shared matrices are larger than the layer."""
    tensors = {
        "base_model.randlora_A": make(RANK, 1, min(size) + 1, dtype=dtype),
        "base_model.randlora_B": make(max(size) + 1, BASES + 1, RANK, dtype=dtype),
        f"{layer}.randlora_lambda": make(RANK, BASES, dtype=dtype),
        f"{layer}.randlora_gamma": make(BASES, min(size), dtype=dtype),
    }
    return write(folder, tensors, **{"peft_type": "RANDLORA", "r": RANK, "randlora_alpha": ALPHA, **fields})


def change_of(adapter: Path, layer: str = "l", size: tuple[int, int] = (OUT, IN)) -> Matrix:
    """Element by element: as the library flattens, the index of A' is not that of B'."""
    found = {role: tensor.double() for role, tensor in own(adapter, layer).items()}
    a, b = found["randlora_A"], found["randlora_B"]
    change = [[Fraction() for _ in range(min(size))] for _ in range(max(size))]
    for q in range(RANK * BASES):
        (i, j), (k, n) = divmod(q, BASES), divmod(q, RANK)
        for large, row in enumerate(change):
            for small in range(min(size)):
                numbers = (found["randlora_lambda"][i, j], a[i, 0, small], found["randlora_gamma"][j, small])
                product = Fraction(b[large, k, n].item()) * Fraction(ALPHA / RANK)
                for number in numbers:
                    product *= Fraction(number.item())
                row[small] += product
    return change if size[0] >= size[1] else [list(column) for column in zip(*change, strict=True)]


@pytest.mark.long("size")
@every_dtype
@pytest.mark.parametrize("size", [(OUT, IN), (IN, OUT), (7, 7)])
def test_every_element_is_the_rounding_of_the_formula(
    tmp_path: Path, dtype: torch.dtype, factors: torch.dtype, size: tuple[int, int]
) -> None:
    base = base_of(tmp_path / "base", dtype, *size)
    adapter = one_layer(tmp_path / "a", factors, make=varied, size=size)
    change = change_of(adapter, size=size)
    try_merges(tmp_path, base, adapter, change)
    try_chain(tmp_path, base, adapter, change)


def test_on_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    adapter = one_layer(tmp_path / "a", layer=PART)
    try_part(tmp_path, adapter, change_of(adapter, PART))


def test_on_a_weight_that_is_stored_transposed(tmp_path: Path) -> None:
    """Its factors fit either way: the family of the model tells."""
    adapter = one_layer(tmp_path / "a", layer=TURNED)
    try_turned(tmp_path, adapter, change_of(adapter, TURNED))


def test_projections_that_are_stored_apart(tmp_path: Path) -> None:
    """By rows of the product that it comes down to."""
    adapter = one_layer(tmp_path / "a", layer=JOINED)
    try_joined(tmp_path, adapter, change_of(adapter, layer=JOINED))


def test_every_command(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a")
    try_commands(tmp_path, base, adapter, "randlora")
    try_leading_part(tmp_path, base, adapter, "randlora")


def test_shared_matrices_are_saved_with_each_module_too(tmp_path: Path) -> None:
    """As PEFT 0.21.2 does. One that differs is refused."""
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    again = tensors["base_model.randlora_A"].clone()
    save_file({**tensors, f"{PREFIX}l.randlora_A": again}, path)
    adaptertool.merge(base, [adapter], tmp_path / "ok")
    again[0, 0, 0] += 1
    save_file({**tensors, f"{PREFIX}l.randlora_A": again}, path)
    with pytest.raises(InputError, match="are one tensor, and differ"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    for number, (fields, message) in enumerate(
        [
            ({"save_projection": False}, "save_projection = false: what PEFT draws by chance"),
            ({"r": 3}, "r is 3"),
            ({"quite_new": 1}, "quite_new"),
            ({"randlora_alpha": "x"}, "randlora_alpha|scale"),
        ]
    ):
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [one_layer(tmp_path / f"{number}", **fields)], tmp_path / "out")
    path = one_layer(tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, shape in (
        ("base_model.randlora_A", (RANK, 1, IN - 1)),
        ("base_model.randlora_A", (RANK, 2, IN)),
        ("base_model.randlora_B", (OUT - 1, BASES, RANK)),
        ("base_model.randlora_B", (OUT, BASES - 1, RANK)),
        (f"{PREFIX}l.randlora_lambda", (RANK, BASES + 1)),
        (f"{PREFIX}l.randlora_gamma", (BASES, IN + 1)),
    ):
        save_file({**tensors, key: torch.ones(shape)}, path)
        with pytest.raises((MismatchError, UnsupportedError)):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    for key in tensors:
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, path)
        with pytest.raises(InputError, match="has no randlora"):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()
