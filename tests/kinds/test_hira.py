"""HiRA against rationals, and in every command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, write_checkpoint
from layers import DTYPES
from one_kind import (
    IN,
    OUT,
    PART,
    Numbers,
    base_of,
    every_dtype,
    normal,
    own,
    times,
    together,
    try_commands,
    try_merges,
    try_part,
    varied,
    write,
)
from rationals import Matrix, matrix, require
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

RANK = 3


def one_layer(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    layer: str = "l",
    make: Numbers = normal,
    size: tuple[int, int] = (OUT, IN),
    **fields: Any,
) -> Path:
    tensors = {
        f"{layer}.hira_A": make(RANK, size[1], dtype=dtype),
        f"{layer}.hira_B": make(size[0], RANK, dtype=dtype),
    }
    return write(folder, tensors, **{"peft_type": "HIRA", "r": RANK, **fields})


def change_of(adapter: Path, weight: Matrix, layer: str = "l") -> Matrix:
    found = own(adapter, layer)
    product = times(matrix(found["hira_B"]), matrix(found["hira_A"]))
    return [[w * p for w, p in zip(*rows, strict=True)] for rows in zip(weight, product, strict=True)]


@every_dtype
def test_every_element_is_the_rounding_of_the_formula(tmp_path: Path, dtype: torch.dtype, factors: torch.dtype) -> None:
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors, make=varied)
    try_merges(tmp_path, base, adapter, change_of(adapter, matrix(load(base)["l.weight"])))


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_multiplies_the_weight_that_it_finds(tmp_path: Path, dtype: torch.dtype) -> None:
    """Without a rounding between two of them; the middle of two stored values is no trap."""
    base = base_of(tmp_path / "base", dtype)
    one, other = (one_layer(tmp_path / name, torch.bfloat16, make=varied) for name in "ab")
    adaptertool.merge(base, [one, other], tmp_path / "out", weights=["0.5", "-2"])
    stored = load(base)["l.weight"]
    first = together(matrix(stored), change_of(one, matrix(stored)), Fraction(1, 2))
    require(load(tmp_path / "out")["l.weight"], together(first, change_of(other, first), Fraction(-2)), stored)


def test_elements_in_the_middle_of_two_stored_values(tmp_path: Path) -> None:
    """Factors of few bits make many of them; large weights beside small ones make the bound wide."""
    weight = (torch.randn(64, 48) * 2.0 ** torch.randint(-20, 20, (64, 1))).bfloat16()
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight})
    adapter = one_layer(tmp_path / "a", size=(64, 48))
    path = adapter / "adapter_model.safetensors"
    save_file({key: (4 * tensor).round() / 16 for key, tensor in load_file(path).items()}, path)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    exact = together(matrix(weight), change_of(adapter, matrix(weight)))
    require(load(tmp_path / "out")["l.weight"], exact, weight)


def test_on_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    adapter = one_layer(tmp_path / "a", layer=PART)
    torch.manual_seed(5)
    fused = torch.randn(3 * OUT, IN)
    torch.manual_seed(5)
    try_part(tmp_path, adapter, change_of(adapter, matrix(fused[OUT : 2 * OUT]), PART))


def test_every_command(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a")
    try_commands(tmp_path, base, adapter, "hira")
    with pytest.raises(UnsupportedError, match="of kind hira"):
        adaptertool.truncate(adapter, tmp_path / "sum", rank=1)


def test_sum_takes_the_leading_part_on_its_base(tmp_path: Path) -> None:
    """At full rank that is the change itself, but for its rounding."""
    base, adapter = base_of(tmp_path / "base", torch.float32), one_layer(tmp_path / "a")
    adaptertool.sum_adapters([adapter], tmp_path / "sum", base=base, rank=IN)
    adaptertool.merge(base, [adapter], tmp_path / "one")
    adaptertool.merge(base, [tmp_path / "sum"], tmp_path / "other")
    one, other = (load(tmp_path / name)["l.weight"] for name in ("one", "other"))
    assert torch.allclose(one, other, atol=1e-5) and not torch.allclose(one, load(base)["l.weight"], atol=1e-2)


def test_what_is_no_hira_is_refused_by_name(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    with pytest.raises(InputError, match="quite_new"):
        adaptertool.merge(base, [one_layer(tmp_path / "f", quite_new=1)], tmp_path / "out")
    path = one_layer(tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({f"{PREFIX}l.hira_B": tensors[f"{PREFIX}l.hira_B"]}, path)
    with pytest.raises(InputError, match="has no hira_A"):
        adaptertool.merge(base, [path.parent], tmp_path / "out")
    for shape in ((RANK, IN + 1), (RANK + 1, IN), (RANK,)):
        save_file(tensors | {f"{PREFIX}l.hira_A": torch.ones(shape)}, path)
        with pytest.raises(InputError):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    save_file({f"{PREFIX}l.hira_A": torch.ones(2, 3, 2, 2), f"{PREFIX}l.hira_B": torch.ones(4, 2, 1, 1)}, path)
    with pytest.raises(UnsupportedError, match="of kind hira on a convolution"):
        adaptertool.truncate(path.parent, tmp_path / "out", rank=1)
    other = one_layer(tmp_path / "b")
    with pytest.raises(InputError, match="mixed"):
        adaptertool.merge(base, [other, one_layer(tmp_path / "c")], tmp_path / "out", compose="mixed")
    with pytest.raises(MismatchError):
        adaptertool.merge(base, [one_layer(tmp_path / "d", size=(OUT, IN + 1))], tmp_path / "out")
    assert not (tmp_path / "out").exists()
