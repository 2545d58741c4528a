"""KaSA against rationals, of a decomposition in float64, through every command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, lora_factors, same_bits, write_adapter, write_checkpoint
from decomposed import require_every_command, require_same_bytes_by_threads
from one_kind import own, scaled, times, together, vector, write
from rationals import Matrix, matrix

import adaptertool
from adaptertool.errors import InputError, NonFiniteError, UnsupportedError

OUT, IN, R = 7, 5, 2
KASA = {"beta": 1e-4, "gamma": 1e-3}


def one_layer(folder: Path, out: int = OUT, wide: int = IN, rank: int = R, **more: Any) -> Path:
    factors = {"lora_A.weight": (rank, wide), "lora_B.weight": (out, rank), "lora_diag": (rank,)}
    dtype = more.pop("dtype", torch.float32)
    tensors = {f"l.{key}": torch.randn(shape).to(dtype) for key, shape in factors.items()}
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 3, "kasa_config": KASA}
    return write(folder, tensors | more.pop("tensors", {}), **(fields | more))


def truncated(weight: torch.Tensor, count: int) -> torch.Tensor:
    """The weight without its smallest singular values: of the others, in float64, and then in its 16 bits."""
    u, s, v = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    stays = torch.from_numpy(u[:, :-count] * s[:-count] @ v[:-count])
    return stays.to(weight.dtype).double() if weight.dtype.itemsize == 2 else stays


def change_of(adapter: Path, weight: torch.Tensor) -> Matrix:
    found, rank = own(adapter), len(own(adapter)["lora_diag"])
    a, b = matrix(found["lora_A.weight"]), matrix(found["lora_B.weight"])
    added = times(b, scaled([Fraction(3 / rank) * x for x in vector(found["lora_diag"])], a))
    return together(added, matrix(truncated(weight, rank) - weight.double()))


@pytest.mark.parametrize(
    ("dtype", "factors", "size"),
    [
        (torch.bfloat16, torch.float32, (OUT, IN)),
        (torch.float16, torch.bfloat16, (IN, OUT)),
        (torch.bfloat16, torch.float64, (OUT, OUT)),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_of_a_base_that_is_not_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    """To rounding errors of the decomposition."""
    weight = torch.randn(OUT, IN, dtype=torch.float64).to(dtype)
    base, adapter = write_checkpoint(tmp_path / "base", {"l.weight": weight}), one_layer(tmp_path / "a")
    report = adaptertool.merge(base, [adapter], tmp_path / "out", verify=True)
    assert any("takes the smallest singular values out of each weight" in note for note in report.notes)
    found, change = load(tmp_path / "out")["l.weight"].double(), change_of(adapter, weight)
    expected = weight.double() + torch.tensor([[float(x) for x in row] for row in change], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=0, rtol=2.0**-23 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("kept", [(3, 2, 1, 1, 0.5), (3, 2, 0.5, 0.5, 0.5), (3, 2, 1, 1 - 1e-9, 0.5)])
def test_singular_values_that_float32_cannot_tell_apart(tmp_path: Path, kept: tuple[float, ...]) -> None:
    u, v = (torch.linalg.qr(torch.randn(size, IN, dtype=torch.float64))[0] for size in (OUT, IN))
    base = write_checkpoint(tmp_path / "base", {"l.weight": u * torch.tensor(kept) @ v.T})
    with pytest.raises(UnsupportedError, match=r"l\.weight: its 2 smallest singular values .* merge it with PEFT"):
        adaptertool.merge(base, [one_layer(tmp_path / "a")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [(3, 2, 1, 0.5, 0.5), (3, 2, 2, 0, 0), (3, 2, 0, 0, 0)])
def test_equal_singular_values_that_are_all_taken_or_all_stay(tmp_path: Path, kept: tuple[float, ...]) -> None:
    """What is taken is known, whichever vectors it has; of a weight of low rank it is nothing."""
    u, v = (torch.linalg.qr(torch.randn(size, IN, dtype=torch.float64))[0] for size in (OUT, IN))
    base = write_checkpoint(tmp_path / "base", {"l.weight": u * torch.tensor(kept) @ v.T})
    adapter = one_layer(tmp_path / "a", tensors={"l.lora_diag": torch.zeros(R)})
    adaptertool.merge(base, [adapter], tmp_path / "out")
    left = torch.tensor([*kept[:3], 0, 0])
    torch.testing.assert_close(load(tmp_path / "out")["l.weight"], u * left @ v.T, atol=1e-12, rtol=0)


def test_what_is_refused(tmp_path: Path) -> None:
    weight = torch.randn(OUT, IN)
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight})
    adapter = one_layer(tmp_path / "a")
    lora = write_adapter(tmp_path / "lora", lora_factors("l", weight.shape, 2), r=2, lora_alpha=2)
    with pytest.raises(UnsupportedError, match="which is changed before: give this adapter first"):
        adaptertool.merge(base, [lora, adapter], tmp_path / "out")
    adaptertool.merge(base, [adapter, lora], tmp_path / "after")
    weight[0, 1] = float("nan")
    broken = write_checkpoint(tmp_path / "nan", {"l.weight": weight})
    with pytest.raises((InputError, NonFiniteError), match=r"l\.weight"):
        adaptertool.merge(broken, [adapter], tmp_path / "out")
    with pytest.raises(InputError, match=r"l\.weight"):  # nothing would stay
        adaptertool.merge(base, [one_layer(tmp_path / "all", rank=IN)], tmp_path / "out")
    for name, fields in (("dora", {"use_dora": True}), ("in blocks", {"use_bdlora": {"nblocks": 1}})):
        with pytest.raises(UnsupportedError, match=r"kasa_config together with use_.* has no agreed meaning"):
            adaptertool.merge(base, [one_layer(tmp_path / name, **fields)], tmp_path / "out")
    with pytest.raises(InputError, match=r"has lora_diag, which adapter_config\.json does not announce"):
        adaptertool.merge(base, [one_layer(tmp_path / "not said", kasa_config=None)], tmp_path / "out")
    short = one_layer(tmp_path / "short", tensors={"l.lora_diag": torch.ones(R + 1)})
    with pytest.raises(InputError, match="lora_diag"):
        adaptertool.merge(base, [short], tmp_path / "out")
    with pytest.raises(UnsupportedError, match="is of kind kasa"):
        adaptertool.truncate(adapter, tmp_path / "out", rank=1)
    assert not (tmp_path / "out").exists()


def test_with_a_bias_and_the_adapter_in_its_keys(tmp_path: Path) -> None:
    weight, bias = torch.randn(OUT, IN).bfloat16(), torch.randn(OUT).bfloat16()
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight, "l.bias": bias})
    offset = torch.randn(OUT)
    adapter = one_layer(tmp_path / "a", tensors={"l.lora_B.bias": offset}, lora_bias=True)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    found, plain = load(tmp_path / "out"), own(adapter)
    assert same_bits(found["l.bias"], (bias.double() + 1.5 * offset.double()).bfloat16())
    named = {f"l.{key}".replace("_A.", "_A.x.").replace("_B.", "_B.x.").replace("diag", "diag.x"): tensor
             for key, tensor in plain.items()}  # fmt: skip
    other = write(tmp_path / "b", named, peft_type="LORA", r=R, lora_alpha=3, kasa_config=KASA, lora_bias=True)
    adaptertool.merge(base, [other], tmp_path / "other")
    assert all(same_bits(tensor, load(tmp_path / "other")[name]) for name, tensor in found.items())


def test_threads_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_same_bytes_by_threads(tmp_path, one_layer, torch.bfloat16, monkeypatch)
