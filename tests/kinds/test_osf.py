"""OSF against rationals, of a decomposition in float64, through every command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, lora_factors, write_adapter, write_checkpoint
from decomposed import require_every_command, require_same_bytes_by_threads
from one_kind import own, scaled, times, together, vector, write
from rationals import Matrix, matrix

import adaptertool
from adaptertool.errors import InputError, NonFiniteError, UnsupportedError

OUT, IN, COUNT = 7, 5, 3


def one_layer(folder: Path, out: int = OUT, wide: int = IN, count: int = COUNT, **more: Any) -> Path:
    factors = {"U_low": (out, count), "S_low": (count,), "V_low": (count, wide)}
    dtype = more.pop("dtype", torch.float32)
    tensors = {f"l.osf_svd_params.{key}": torch.randn(shape).to(dtype) for key, shape in factors.items()}
    return write(folder, tensors, peft_type="OSF", effective_rank=None, **more)


def smallest(weight: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """U, σ and V in the dtype of the weight, where that has 16 bits."""
    u, s, v = (torch.from_numpy(part) for part in np.linalg.svd(weight.double().numpy(), full_matrices=False))
    narrow = weight.dtype if weight.dtype.itemsize == 2 else torch.float64
    return tuple(part.float().to(narrow).double() if narrow.itemsize == 2 else part for part in (
        u[:, -count:], s[-count:], v[-count:]))  # fmt: skip


def change_of(adapter: Path, weight: torch.Tensor) -> Matrix:
    found = own(adapter)
    trained = [found[f"osf_svd_params.{name}"] for name in ("U_low", "S_low", "V_low")]
    u, s, v = smallest(weight, len(trained[1]))
    after = times(matrix(trained[0]), scaled(vector(trained[1]), matrix(trained[2])))
    before = matrix(s[:, None] * v)  # rounded once, to float64
    return together(after, times(matrix(u), before), Fraction(-1))


@pytest.mark.parametrize(
    ("dtype", "factors", "size"),
    [
        (torch.bfloat16, torch.float32, (OUT, IN)),
        (torch.float16, torch.bfloat16, (IN, OUT)),
        (torch.float32, torch.float64, (OUT, IN)),
        (torch.float32, torch.float32, (OUT, OUT)),
    ],
    ids=str,
)
def test_every_command(
    tmp_path: Path,
    dtype: torch.dtype,
    factors: torch.dtype,
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_every_command(tmp_path, one_layer, change_of, (dtype, factors), size, monkeypatch)


def test_all_of_the_singular_values(tmp_path: Path) -> None:
    """Nothing of the weight stays."""
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    adapter = one_layer(tmp_path / "a", count=IN)
    report = adaptertool.merge(base, [adapter], tmp_path / "out")
    assert any("is decomposed in float64 by LAPACK" in note for note in report.notes)
    u, s, v = (own(adapter)[f"osf_svd_params.{name}_low"].double() for name in "USV")
    found = load(tmp_path / "out")["l.weight"]
    torch.testing.assert_close(found.double(), u * s @ v, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("singular", "fine"),
    [
        ((3, 2, 1, 1, 0.5), False),
        ((3, 2, 1, 1 - 1e-9, 0.5), False),
        ((3, 2, 1, 0.99, 0.5), True),
        ((3, 2, 0, 0, 0), True),
    ],
)
def test_singular_values_that_float32_cannot_tell_apart(
    tmp_path: Path, singular: tuple[float, ...], fine: bool
) -> None:
    """Two of the five are replaced; of a weight of low rank both are nothing, whichever they are."""
    u, v = (torch.linalg.qr(torch.randn(size, IN, dtype=torch.float64))[0] for size in (OUT, IN))
    base = write_checkpoint(tmp_path / "base", {"l.weight": (u * torch.tensor(singular) @ v.T).double()})
    adapter = one_layer(tmp_path / "a", count=2)
    if fine:
        adaptertool.merge(base, [adapter], tmp_path / "out")
    else:
        with pytest.raises(UnsupportedError, match=r"l\.weight: its 2 smallest singular values .* merge it with PEFT"):
            adaptertool.merge(base, [adapter], tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_what_is_refused(tmp_path: Path) -> None:
    weight = torch.randn(OUT, IN)
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight})
    adapter = one_layer(tmp_path / "a")
    lora = write_adapter(tmp_path / "lora", lora_factors("l", weight.shape, 2), r=2, lora_alpha=2)
    with pytest.raises(UnsupportedError, match="which is changed before"):
        adaptertool.merge(base, [lora, adapter], tmp_path / "out")
    adaptertool.merge(base, [adapter, lora], tmp_path / "after")
    for name, bad in (("nan", float("nan")), ("inf", float("inf"))):
        weight[0, 1] = bad
        broken = write_checkpoint(tmp_path / name, {"l.weight": weight})
        with pytest.raises((InputError, NonFiniteError), match=r"l\.weight"):
            adaptertool.merge(broken, [adapter], tmp_path / "out")
    with pytest.raises(InputError, match=r"l\.weight"):
        adaptertool.merge(base, [one_layer(tmp_path / "more", count=IN + 1)], tmp_path / "out")
    with pytest.raises(InputError, match="quite_new"):
        adaptertool.merge(base, [one_layer(tmp_path / "new", quite_new=1)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_threads_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_same_bytes_by_threads(tmp_path, one_layer, torch.float32, monkeypatch)
