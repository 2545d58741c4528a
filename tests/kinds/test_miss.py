"""MiSS against rationals, and in every command."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_checkpoint
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
    require_commands,
    try_chain,
    try_commands,
    try_joined,
    try_leading_part,
    try_merges,
    try_part,
    varied,
    write,
)
from rationals import Matrix, matrix

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

RANK = 4  # no divisor of IN
MINI = {"init_weights": "mini", "mini_r": 2}


def one_layer(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    layer: str = "l",
    make: Numbers = normal,
    size: tuple[int, ...] = (RANK, OUT),
    **fields: Any,
) -> Path:
    return write(
        folder, {f"{layer}.miss_block": make(*size, dtype=dtype)}, **{"peft_type": "MISS", "r": RANK, **fields}
    )


def change_of(adapter: Path, layer: str = "l") -> Matrix:
    block = own(adapter, layer)["miss_block"].double()
    rows, columns = block.shape
    return [[Fraction(block[i % rows, o % columns].item()) for i in range(IN)] for o in range(OUT)]


@pytest.mark.long("fields")
@every_dtype
@pytest.mark.parametrize("fields", [{}, {"init_weights": False, "r": 3, "size": (3, OUT)}, MINI | {"size": (RANK, 2)}])
def test_every_element_is_the_rounding_of_the_formula(
    tmp_path: Path, dtype: torch.dtype, factors: torch.dtype, fields: dict[str, Any]
) -> None:
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors, make=varied, **fields)
    try_merges(tmp_path, base, adapter, change_of(adapter))
    try_chain(tmp_path, base, adapter, change_of(adapter))


def bat_of(block: torch.Tensor, w: Matrix) -> Matrix:
    """Each block (r, r) times 1 + D, and D added."""
    count, rank, _ = block.shape
    d = [matrix(part) for part in block]
    changed = [list(row) for row in w]
    for o, i in itertools.product(range(count * rank), range(len(w[0]))):
        k, a, c, first = o // rank, o % rank, i % rank, i - i % rank
        changed[o][i] += d[k][a][c] + sum((w[o][first + j] * d[k][j][c] for j in range(rank)), Fraction())
    return changed


@every_dtype
@pytest.mark.parametrize("tag", ["MISS", "BONE"])
def test_bat(
    tmp_path: Path, dtype: torch.dtype, factors: torch.dtype, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of rows with a rotation each."""
    block = torch.randn(OUT // 2, 2, 2).to(factors)
    fields = {"peft_type": tag, "r": 2, "init_weights": "bat"} | ({"mini_r": 1} if tag == "MISS" else {})
    adapter = write(tmp_path / "a", {f"l.{tag.lower()}_block": block}, **fields)
    stored = {"l.weight": torch.randn(OUT, IN).to(dtype)}
    require_commands(tmp_path, stored, adapter, {"l.weight": lambda w: bat_of(block, w)}, monkeypatch)


def test_bat_on_a_part_of_a_fused_projection_and_on_a_weight_that_is_stored_transposed(tmp_path: Path) -> None:
    block = torch.randn(OUT // 2, 2, 2)
    fields = {"peft_type": "MISS", "r": 2, "init_weights": "bat"}
    adapter = write(tmp_path / "a", {f"{PART}.miss_block": block}, **fields)
    torch.manual_seed(1)
    fused = torch.randn(3 * OUT, IN)
    torch.manual_seed(1)
    w = matrix(fused[OUT : 2 * OUT])
    try_part(
        tmp_path,
        adapter,
        [[x - y for x, y in zip(*rows, strict=True)] for rows in zip(bat_of(block, w), w, strict=True)],
    )
    turned = write(tmp_path / "b", {f"{TURNED}.miss_block": block}, **fields)
    base = write_checkpoint(
        tmp_path / "gpt2", {f"{TURNED}.weight": torch.randn(IN, OUT)}, config={"model_type": "gpt2"}
    )
    with pytest.raises(UnsupportedError, match="stored transposed"):
        adaptertool.merge(base, [turned], tmp_path / "out2")


def test_on_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    adapter = one_layer(tmp_path / "a", layer=PART)
    try_part(tmp_path, adapter, change_of(adapter, PART))


def test_projections_that_are_stored_apart(tmp_path: Path) -> None:
    """By rows of the product that it comes down to."""
    adapter = one_layer(tmp_path / "a", layer=JOINED)
    try_joined(tmp_path, adapter, change_of(adapter, JOINED))


def test_every_command(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a")
    try_commands(tmp_path, base, adapter, "miss")
    try_leading_part(tmp_path, base, adapter, "miss")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A block that is half as wide, as of another model, is none of the variant that repeats it."""
    base = base_of(tmp_path / "base")
    for number, (fields, message) in enumerate(
        [
            ({"init_weights": "bat"}, "init_weights is bat, and its factor 4×8"),
            ({"size": (2, RANK, RANK)}, "init_weights is None, and its factor 2×4×4"),
            ({"init_weights": "new"}, "init_weights = new is not known"),
            (MINI, "mini_r is 2"),
            ({"r": 5}, "r is 5, and its factor 4×8"),
            ({"quite_new": 1}, "quite_new"),
        ]
    ):
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [one_layer(tmp_path / f"{number}", **fields)], tmp_path / "out")
    for number, size in enumerate([(RANK, OUT // 2), (RANK, 9), (RANK, 0), (IN + 1, OUT), (RANK,), (RANK, OUT, 1)]):
        adapter = one_layer(tmp_path / f"size{number}", size=size)
        with pytest.raises(InputError):
            adaptertool.merge(base, [adapter], tmp_path / "out")
        assert not adaptertool.inspect(adapter, base).fits
    half = one_layer(tmp_path / "half", size=(RANK, OUT // 2))
    with pytest.raises(MismatchError, match="must have 8 columns"):
        adaptertool.merge(base, [half], tmp_path / "out")
    assert not (tmp_path / "out").exists()
