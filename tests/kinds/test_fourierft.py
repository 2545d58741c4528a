"""FourierFT: the product against rationals, through every command, and its error against decimals."""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import one_kind as parts
import pytest
import torch
from circles import cosine, pi
from conftest import load, write_checkpoint
from one_kind import PART, difference, require_commands, together, try_part, write
from rationals import EVERY, Matrix, matrix, require

import adaptertool
from adaptertool.errors import InputError, MismatchError, NonFiniteError, UnsupportedError
from adaptertool.kinds import fourierft
from adaptertool.numerics.circle import circle
from adaptertool.numerics.sparse_spectrum import wave_rows

OUT, IN, SEED = 6, 10, 5
FIELDS = {"peft_type": "FOURIERFT", "random_loc_seed": SEED, "scaling": 150.0}


def places(count: int, out: int = OUT, wide: int = IN) -> list[tuple[int, int]]:
    order = torch.randperm(out * wide, generator=torch.Generator().manual_seed(SEED))[:count]
    return [divmod(number, wide) for number in order.tolist()]


def with_rounded_cosines(spectrum: torch.Tensor, out: int = OUT, wide: int = IN) -> Matrix:
    """The product as the docstring has it, in rationals."""
    (c, s), (d, t) = circle(out), circle(wide)
    times = Fraction(150.0 / (out * wide))
    numbers = spectrum.double().numpy()

    def element(o: int, i: int) -> Fraction:
        total = Fraction()
        for number, (u, v) in zip(numbers, places(len(numbers), out, wide), strict=True):
            total += Fraction(float(c[o * u % out] * number)) * Fraction(float(d[i * v % wide]))
            total -= Fraction(float(s[o * u % out] * number)) * Fraction(float(t[i * v % wide]))
        return total * times

    return [[element(o, i) for i in range(wide)] for o in range(out)]


@pytest.mark.parametrize("dtype", EVERY)
def test_every_command(tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    spectrum = (torch.randn(7) * 2.0 ** torch.randint(-9, 3, (7,))).to(dtype)
    adapter = write(tmp_path / "a", {"l.fourierft_spectrum": spectrum}, **FIELDS)
    stored = {"l.weight": torch.randn(OUT, IN), "l.bias": torch.ones(OUT)}
    require_commands(tmp_path, stored, adapter, {"l.weight": difference(with_rounded_cosines(spectrum))}, monkeypatch)


@pytest.mark.parametrize("shape", [(10, 10), (6, 10)])
def test_weights_that_are_stored_transposed(
    tmp_path: Path, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT has it on the Conv1D of GPT-2; the factors do not tell the sizes."""
    name, spectrum = "h.0.attn.c_proj", torch.randn(7)
    adapter = write(tmp_path / "a", {f"transformer.{name}.fourierft_spectrum": spectrum}, **FIELDS, fan_in_fan_out=True)
    change = with_rounded_cosines(spectrum, shape[1], shape[0])
    formula = difference([list(column) for column in zip(*change, strict=True)])
    stored = {f"{name}.weight": torch.randn(shape).half()}
    config = '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}'
    require_commands(tmp_path, stored, adapter, {f"{name}.weight": formula}, monkeypatch, config=config, lora=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_do_not_depend_on_the_transform(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is off by, as long as it says so: also where that leaves a tenth of all elements open, or all."""
    spectrum, stored = torch.randn(7), torch.randn(OUT, IN).to(dtype)
    adapter = write(tmp_path / "a", {"l.fourierft_spectrum": spectrum}, **FIELDS)
    base = write_checkpoint(tmp_path / "base", {"l.weight": stored})
    exact = together(matrix(stored), with_rounded_cosines(spectrum))
    for number, noise in enumerate((0.0, 2.0**-20, 2.0**-9)):

        def disturbed(*given: Any, noise: float = noise) -> tuple[Any, float]:
            rows, error = wave_rows(*given)
            return rows + noise * np.where(np.arange(rows.size).reshape(rows.shape) % 2, 1.0, -1.0), error + noise

        monkeypatch.setattr(fourierft, "wave_rows", disturbed)
        adaptertool.merge(base, [adapter], tmp_path / f"out{number}")
        require(load(tmp_path / f"out{number}")["l.weight"], exact, stored)


def test_a_part_of_a_tensor(tmp_path: Path) -> None:
    spectrum = torch.randn(5)
    adapter = write(tmp_path / "a", {f"{PART}.fourierft_spectrum": spectrum}, **FIELDS)
    try_part(tmp_path, adapter, with_rounded_cosines(spectrum, parts.OUT, parts.IN))


def test_what_the_user_is_told_of_the_numbers(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    damaged = write(tmp_path / "damaged", {"l.fourierft_spectrum": torch.tensor([1.0, np.inf])}, **FIELDS)
    with pytest.raises(NonFiniteError, match=r"l\.fourierft_spectrum holds inf at element 1"):
        adaptertool.merge(base, [damaged], tmp_path / "out")
    zero = write(tmp_path / "zero", {"l.fourierft_spectrum": torch.zeros(3)}, **FIELDS)
    report = adaptertool.merge(base, [zero], tmp_path / "out")
    assert any("zero throughout in 1 of 1 modules" in note for note in report.notes)


@pytest.mark.parametrize(("out", "wide"), [(6, 10), (1, 7), (13, 4)])
def test_the_error_is_within_the_bound(out: int, wide: int) -> None:
    """Against the formula in decimals of 80 digits."""
    spectrum = torch.randn(4)
    made = with_rounded_cosines(spectrum, out, wide)
    with decimal.localcontext(prec=80):
        turn = 2 * pi()
        numbers = [Decimal(float(number)) for number in spectrum]
        allowed = Decimal(2) ** -50 * 150 / (out * wide) * sum(map(abs, numbers))
        for o in range(out):
            for i in range(wide):
                exact = Decimal(0)
                for number, (u, v) in zip(numbers, places(4, out, wide), strict=True):
                    exact += number * cosine(turn * ((o * u * wide + i * v * out) % (out * wide)) / (out * wide))
                found = Decimal(made[o][i].numerator) / Decimal(made[o][i].denominator)
                assert abs(found - exact * 150 / (out * wide)) <= allowed


@pytest.mark.parametrize(
    ("spectrum", "fields", "error"),
    [
        (torch.ones(OUT * IN + 1), {}, MismatchError),
        (torch.ones(3, 1), {}, UnsupportedError),
        (torch.tensor(1.0), {}, InputError),
        (torch.tensor([np.nan]), {}, InputError),
        (torch.ones(3), {"random_loc_seed": None}, UnsupportedError),
        (torch.ones(3), {"random_loc_seed": -1}, UnsupportedError),
        (torch.ones(3), {"scaling": "150"}, InputError),
        (torch.ones(3), {"scaling": None}, InputError),
        (torch.ones(3), {"alpha": 2}, UnsupportedError),
        (torch.ones(3), {"bias": "some"}, UnsupportedError),
    ],
)
def test_what_is_refused(
    tmp_path: Path, spectrum: torch.Tensor, fields: dict[str, Any], error: type[Exception]
) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN), "rest": torch.ones(2)})
    adapter = write(tmp_path / "a", {"l.fourierft_spectrum": spectrum}, **{**FIELDS, **fields})
    with pytest.raises(error):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    adaptertool.inspect(adapter, base)


def test_a_model_whose_family_is_not_known(tmp_path: Path) -> None:
    """With fan_in_fan_out in the config: nothing tells."""
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    (base / "config.json").unlink(missing_ok=True)
    adapter = write(tmp_path / "a", {"l.fourierft_spectrum": torch.ones(3)}, **FIELDS, fan_in_fan_out=True)
    with pytest.raises(UnsupportedError, match="may be stored transposed"):
        adaptertool.merge(base, [adapter], tmp_path / "out")
