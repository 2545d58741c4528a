"""OFT and BOFT of LyCORIS against rationals, through every command."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tensors, load, same_bits, write_checkpoint
from one_kind import Formula, require_commands
from rationals import EVERY, Matrix
from safetensors.torch import save_file
from skews import cayley, times

import adaptertool
from adaptertool.errors import AdapterToolError, MismatchError, UnsupportedError

OUT, WIDE = 8, 4
NAME = "lora_unet_l"


def turned(stored: torch.Tensor) -> list[Any]:
    exact = [np.frompyfunc(Fraction, 1, 1)(block.double().numpy()) for block in stored.reshape(-1, WIDE, WIDE)]
    return [cayley(block - block.T) for block in exact]


def oft(stored: torch.Tensor, rescale: torch.Tensor | None) -> Formula:
    def formula(w: Matrix) -> Matrix:
        parts = [times(block.T, np.array(w[k * WIDE : (k + 1) * WIDE])) for k, block in enumerate(turned(stored))]
        return scaled(np.concatenate(parts), rescale)

    return formula


def boft(stored: torch.Tensor, rescale: torch.Tensor | None) -> Formula:
    """As LyCORIS has it, with rows for what it reshapes."""

    def formula(w: Matrix) -> Matrix:
        rows, blocks, count = np.array(w), turned(stored), OUT // WIDE
        for stage in range(stored.shape[0]):
            length = WIDE // 2 * 2**stage
            places = [
                c * 2 * length + h * length + i
                for c in range(OUT // length // 2)
                for i in range(length)
                for h in (0, 1)
            ]
            moved = rows[places]
            for k in range(count):
                at = slice(k * WIDE, (k + 1) * WIDE)
                moved[at] = times(blocks[stage * count + k], moved[at])
            rows = np.empty_like(rows)
            rows[places] = moved
        return scaled(rows, rescale)

    return formula


def scaled(rows: Any, rescale: torch.Tensor | None) -> Matrix:
    factors = [1] * OUT if rescale is None else [Fraction(number) for number in rescale.reshape(-1).tolist()]
    return [[factor * x for x in row] for factor, row in zip(factors, rows, strict=True)]


def save(
    path: Path, blocks: torch.Tensor, rescale: torch.Tensor | None = None, alpha: Any = 0, *, module: str = ""
) -> Path:
    tensors: Tensors = {f"{NAME}.oft_blocks": blocks}
    if alpha is not None:
        tensors[f"{NAME}.alpha"] = torch.tensor(alpha)
    if rescale is not None:
        tensors[f"{NAME}.rescale"] = rescale
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"ss_network_module": module} if module else None)
    return path


@pytest.mark.long("shape")
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("stages", [0, 2])
@pytest.mark.parametrize("shape", [(OUT, 5), (OUT, 3, 2)])
def test_every_command(
    tmp_path: Path, dtype: torch.dtype, stages: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (*([stages] if stages else []), OUT // WIDE, WIDE, WIDE)
    blocks = (torch.randn(size) * 2.0 ** torch.randint(-9, 2, size)).to(dtype)
    rescale = None if len(shape) > 2 else torch.randn(OUT, 1).to(dtype)
    stored = {"l.weight": torch.randn(shape).to(torch.float16), "l.bias": torch.randn(OUT)}
    formula = (boft if stages else oft)(blocks, rescale)
    adapter = save(tmp_path / "a" / "a.safetensors", blocks, rescale)
    require_commands(tmp_path, stored, adapter, {"l.weight": formula}, monkeypatch, lora=len(shape) == 2)


@pytest.mark.parametrize("alpha", [2.0**-6, 64.0])
def test_blocks_that_have_a_bound(tmp_path: Path, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are shortened together to alpha·out, where they are longer."""
    blocks = torch.randn(OUT // WIDE, WIDE, WIDE)
    exact = [np.frompyfunc(Fraction, 1, 1)(block.double().numpy()) for block in blocks]
    q = [block - block.T for block in exact]
    square = sum((block * block).sum() for block in q) * 4**200
    size = Fraction(math.isqrt(square.numerator // square.denominator), 2**200) + Fraction(1e-8)
    share = min(Fraction(1), Fraction(alpha) * OUT / size)
    turns = [cayley(block * share) for block in q]

    def formula(w: Matrix) -> Matrix:
        parts = [times(turn.T, np.array(w[k * WIDE : (k + 1) * WIDE])) for k, turn in enumerate(turns)]
        return np.concatenate(parts).tolist()

    adapter = save(tmp_path / "a" / "a.safetensors", blocks, None, alpha, module="lycoris.kohya")
    require_commands(tmp_path, {"l.weight": torch.randn(OUT, 5)}, adapter, {"l.weight": formula}, monkeypatch)
    with pytest.raises(UnsupportedError, match="OFT with a bound"):
        adaptertool.convert(adapter, tmp_path / "as.safetensors", to="comfy", base=tmp_path / "base")


@pytest.mark.parametrize("stages", [(), (2,)])
def test_blocks_that_were_never_trained_turn_nothing(tmp_path: Path, stages: tuple[int, ...]) -> None:
    """Q is 0, and so is its norm: no bound is shorter."""
    stored, blocks = {"l.weight": torch.randn(OUT, 5)}, torch.zeros(*stages, OUT // WIDE, WIDE, WIDE)
    base = write_checkpoint(tmp_path / "base", stored)
    adapter = save(tmp_path / "a.safetensors", blocks, None, 0.5, module="lycoris.kohya")
    adaptertool.merge(base, [adapter], tmp_path / "out")
    assert same_bits(load(tmp_path / "out")["l.weight"], stored["l.weight"])


@pytest.mark.parametrize("module", ["networks.oft", "lycoris.kohya"])
def test_a_bound_of_another_tool_or_none_is_refused(tmp_path: Path, module: str) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, 5)})
    alpha = 0.5 if module == "networks.oft" else -0.5
    adapter = save(tmp_path / "a.safetensors", torch.ones(2, 4, 4), None, alpha, module=module)
    with pytest.raises(UnsupportedError, match=f"alpha is {alpha}; LyCORIS has a bound"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


@pytest.mark.parametrize(
    ("size", "rescale", "alpha", "error"),
    [
        ((2, 4, 4), None, 1, UnsupportedError),
        ((2, 4, 4), None, 1e-5, UnsupportedError),
        ((2, 4, 4), None, None, UnsupportedError),
        ((3, 4, 4), None, 0, MismatchError),
        ((2, 2, 4), None, 0, MismatchError),
        ((2, 3, 3), None, 0, UnsupportedError),
        ((3, 2, 4, 4), None, 0, UnsupportedError),
        ((2, 4, 4), (8,), 0, MismatchError),
        ((2, 4, 4), (4, 1), 0, MismatchError),
        ((0, 4, 4), None, 0, AdapterToolError),
        ((2, 16), None, 0, UnsupportedError),
    ],
)
def test_what_is_refused(
    tmp_path: Path, size: tuple[int, ...], rescale: Any, alpha: Any, error: type[Exception]
) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, 5)})
    scales = None if rescale is None else torch.ones(rescale)
    adapter = save(tmp_path / "a.safetensors", torch.ones(size), scales, alpha)
    with pytest.raises(error):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_a_rescale_by_itself_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, 5)})
    save_file({f"{NAME}.rescale": torch.ones(OUT, 1), f"{NAME}.alpha": torch.tensor(0)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterToolError, match=r"oft_blocks"):
        adaptertool.merge(base, [tmp_path / "a.safetensors"], tmp_path / "out")
