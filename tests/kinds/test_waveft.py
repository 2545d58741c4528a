"""WaveFT against rationals, through every command: the transform by its definition, band by band."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_checkpoint
from one_kind import difference, require_commands, write
from oracle import fractions
from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
from peft.tuners.waveft.wavelet import Wavelet
from rationals import EVERY, Matrix

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError
from adaptertool.kinds.waveft import _filters

SEED = 5
FIELDS = {
    "peft_type": "WAVEFT", "random_loc_seed": SEED, "scaling": 25.0, "use_idwt": True, "wavelet_family": "db1"
}  # fmt: skip


def sparse(spectrum: torch.Tensor, out: int, wide: int) -> Matrix:
    order = torch.randperm(out * wide, generator=torch.Generator().manual_seed(SEED))[: len(spectrum)]
    found = [[Fraction()] * wide for _ in range(out)]
    for number, place in zip(fractions(spectrum), order.tolist(), strict=True):
        found[place // wide][place % wide] = number
    return found


def inverse(spectrum: torch.Tensor, out: int, wide: int, family: str) -> Matrix:
    """As get_delta_weight of PEFT does it, with a transposed convolution written out."""
    filters = Wavelet(family)
    low, high = list(map(Fraction, filters.rec_lo)), list(map(Fraction, filters.rec_hi))
    length, padded = len(low), []
    for size, reduction in zip((out, wide), WAVELET_REDUCTIONS[family], strict=True):
        padded.append(size + reduction + (size + reduction) % 2)
    rows, columns = padded
    matrix = [[Fraction()] * columns for _ in range(rows)]
    for i, row in enumerate(sparse(spectrum, out, wide)):
        for j, number in enumerate(row):
            matrix[i + (rows - out) // 2][j + (columns - wide) // 2] = number
    whole = [[Fraction()] * (columns - 2 + length) for _ in range(rows - 2 + length)]
    for i in range(rows):
        for j in range(columns):
            if matrix[i][j]:
                below, right = i >= rows // 2, j >= columns // 2
                for a, f in enumerate(high if right else low):
                    for b, g in enumerate(high if below else low):
                        p, q = i % (rows // 2), j % (columns // 2)
                        whole[2 * p + a][2 * q + b] += matrix[i][j] * f * g
    pad = (2 * length - 3) // 2
    cropped = [row[pad : len(row) - pad] for row in whole[pad : len(whole) - pad]]
    top, left = (len(cropped) - out) // 2, (len(cropped[0]) - wide) // 2
    return [row[left : left + wide] for row in cropped[top : top + out]]


def times(matrix: Matrix, scale: float) -> Matrix:
    return [[number * Fraction(scale) for number in row] for row in matrix]


@pytest.mark.long("family")
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize(("family", "shape"), [("db1", (6, 10)), ("db1", (5, 7)), ("sym3", (7, 6)), ("coif1", (3, 5))])
def test_every_command(
    tmp_path: Path, family: str, shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectrum = (torch.randn(12) * 2.0 ** torch.randint(-9, 3, (12,))).to(dtype)
    adapter = write(tmp_path / "a", {"l.waveft_spectrum": spectrum}, **{**FIELDS, "wavelet_family": family})
    change = times(inverse(spectrum, *shape, family), 25.0)
    stored = {"l.weight": torch.randn(shape), "l.bias": torch.ones(shape[0])}
    require_commands(tmp_path, stored, adapter, {"l.weight": difference(change)}, monkeypatch)


@pytest.mark.parametrize("transform", [True, False])
@pytest.mark.parametrize("shape", [(10, 10), (6, 10)])
def test_weights_that_are_stored_transposed(
    tmp_path: Path, shape: tuple[int, int], transform: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT has it on the Conv1D of GPT-2; the factors do not tell the sizes."""
    name, spectrum = "h.0.attn.c_proj", torch.randn(17)
    fields = {**FIELDS, "use_idwt": transform, "fan_in_fan_out": True, "wavelet_family": "db2"}
    adapter = write(tmp_path / "a", {f"transformer.{name}.waveft_spectrum": spectrum}, **fields)
    sizes = shape[1], shape[0]
    change = times(inverse(spectrum, *sizes, "db2") if transform else sparse(spectrum, *sizes), 25.0)
    formula = difference([list(column) for column in zip(*change, strict=True)])
    stored = {f"{name}.weight": torch.randn(shape).half()}
    config = '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}'
    require_commands(tmp_path, stored, adapter, {f"{name}.weight": formula}, monkeypatch, config=config, lora=False)


def test_filters_are_those_of_peft() -> None:
    """All that PEFT can transform by: for coif5 it cuts off too little."""
    names = {name for name, (rows, _) in WAVELET_REDUCTIONS.items() if _length(name) == rows + 2}
    assert set(_filters()) == names and len(names) == 23
    assert all(tuple(Wavelet(name).rec_lo) == numbers for name, numbers in _filters().items())


def _length(name: str) -> int | None:
    try:
        return len(Wavelet(name).rec_lo)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("count", "fields", "error"),
    [
        (61, {}, MismatchError),
        (3, {"wavelet_family": "coif5"}, UnsupportedError),
        (3, {"wavelet_family": "haar"}, UnsupportedError),
        (3, {"wavelet_family": None}, UnsupportedError),
        (3, {"use_idwt": None}, UnsupportedError),
        (3, {"random_loc_seed": None}, UnsupportedError),
        (3, {"scaling": None}, InputError),
        (3, {"alpha": 2}, UnsupportedError),
    ],
)
def test_what_is_refused(tmp_path: Path, count: int, fields: dict[str, Any], error: type[Exception]) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(6, 10), "rest": torch.ones(2)})
    adapter = write(tmp_path / "a", {"l.waveft_spectrum": torch.ones(count)}, **{**FIELDS, **fields})
    with pytest.raises(error):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    adaptertool.inspect(adapter, base)
