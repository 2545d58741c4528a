"""Changes that the kernel makes in one visit: the bytes, and what a report tells, are those of passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, same_bits, write_checkpoint
from one_kind import varied, write

import adaptertool
from adaptertool.arithmetic import fused_change
from adaptertool.errors import NonFiniteError
from adaptertool.numerics import compiled

OUT, WIDE = 24, 40
SPECTRUM: dict[str, Any] = {"random_loc_seed": 3, "scaling": 25.0}
pytestmark = pytest.mark.skipif(not compiled.FUNCTIONS, reason="there is no kernel")


def shira(folder: Path, count: int, dtype: torch.dtype = torch.float32) -> Path:
    places = torch.randperm(OUT * WIDE)[:count]
    if count % 2:
        places = places.sort().values
    tensors = {
        "l.shira_weight": varied(count, dtype=dtype),
        "l.shira_indices": torch.stack([places // WIDE, places % WIDE]),
    }
    return write(folder, tensors, peft_type="SHIRA", r=1)


def waveft(folder: Path, count: int, family: str = "db1") -> Path:
    fields = {"peft_type": "WAVEFT", "use_idwt": True, "wavelet_family": family, **SPECTRUM}
    return write(folder, {"l.waveft_spectrum": torch.randn(count)}, **fields)


ADAPTERS: dict[str, Callable[[Path], Path]] = {
    "few elements": lambda folder: shira(folder, 31),
    "few, in no order": lambda folder: shira(folder, 30),
    "few bits": lambda folder: shira(folder, 51, torch.bfloat16),
    "many elements": lambda folder: shira(folder, 600, torch.bfloat16),
    "few of two terms": lambda folder: waveft(folder, 3),
    "many of two terms": lambda folder: waveft(folder, 90),
    "long filters": lambda folder: waveft(folder, 5, "db4"),
    "circulant": lambda folder: write(folder, {"l.c3a_kernel": varied(3, 5, 8)}, peft_type="C3A", block_size=8),
    "gain": lambda folder: write(folder, {"l.ia3_l": 1 + torch.randn(OUT, 1) / 9}, peft_type="IA3"),
    "gain of few bits": lambda folder: write(folder, {"l.ia3_l": varied(OUT, 1).bfloat16()}, peft_type="IA3"),
    "transform": lambda folder: write(
        folder, {"l.fourierft_spectrum": torch.randn(9)}, peft_type="FOURIERFT", **SPECTRUM
    ),
}  # fmt: skip


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each block that the kernel was asked for, whether it made it."""
    found, own = list[bool](), fused_change.Changes.make

    def seen(*given: Any) -> Any:
        result = own(*given)
        found.append(result is not None)
        return result

    monkeypatch.setattr(fused_change.Changes, "make", seen)
    return found


def base_of(folder: Path, dtype: torch.dtype) -> Path:
    weight = varied(OUT, WIDE).to(dtype)
    weight[::7, ::3] = -0.0
    return write_checkpoint(folder, {"l.weight": weight})


def run(base: Path, adapters: Sequence[Path], out: Path, numbers: Sequence[float]) -> tuple[Any, ...]:
    """(bytes, elements changed, survival) of a merge with these weights; or of one adapter, with several."""
    if len(adapters) > 1:
        report = adaptertool.merge(base, adapters, out, weights=numbers)
    else:
        report = adaptertool.wise(base, adapters[0], out, numbers)
    found = sorted(out.rglob("*.safetensors"))
    return [path.read_bytes() for path in found], report.elements_changed, report.survival


def require_alike(tmp_path: Path, adapters: Sequence[Path], dtype: torch.dtype, numbers: Sequence[float]) -> None:
    base = base_of(tmp_path / "base", dtype)
    by_kernel = run(base, adapters, tmp_path / "one", numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_change, "FUNCTIONS", {})
        in_passes = run(base, adapters, tmp_path / "other", numbers)
    assert by_kernel[:2] == in_passes[:2]
    assert by_kernel[2] == pytest.approx(in_passes[2], rel=1e-9)


@pytest.mark.long("how")
@pytest.mark.parametrize("part", [64, 1 << 17])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("how", ADAPTERS)
def test_bytes_are_those_of_passes(
    tmp_path: Path, how: str, dtype: torch.dtype, part: int, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several weights at once, of which some make products that are rounded: also in parts, the last of them short."""
    monkeypatch.setattr(fused_change, "_PART", part)
    require_alike(tmp_path, [ADAPTERS[how](tmp_path / "a")], dtype, [1.0, 0.5, 0.3])
    assert made and all(made)


@pytest.mark.parametrize("numbers", [(1.0, 1.0), (0.3, 0.3), (1.0, -0.5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_two_adapters(tmp_path: Path, dtype: torch.dtype, numbers: tuple[float, float], made: list[bool]) -> None:
    """Which change the same elements in part: together where both have one weight."""
    adapters = [shira(tmp_path / "a", 33), shira(tmp_path / "b", 700)]
    require_alike(tmp_path, adapters, dtype, numbers)
    assert bool(made) == (numbers[0] == numbers[1]) and all(made)


def test_gain_after_gain(tmp_path: Path, made: list[bool]) -> None:
    require_alike(tmp_path, [ADAPTERS["gain"](tmp_path / name) for name in "ab"], torch.bfloat16, [1.0, 1.0])
    assert not made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_the_kernel_leaves_open_is_settled(
    tmp_path: Path, dtype: torch.dtype, made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is told as open, with a number stored there that is wrong."""
    own = fused_change.change

    def open_all(stored: Any, dtype: str, given: Any, times: Any, out: Any, sample: Any) -> Any:
        found = own(stored, dtype, given, times, out, sample)
        assert found is not None
        for into in out:
            into[::3] = 7
        places = np.arange(0, stored.size, 3, dtype=np.int32)
        return [one.__class__(places, one.changed, one.kept, one.update) for one in found]

    monkeypatch.setattr(fused_change, "change", open_all)
    for number, how in enumerate(("few elements", "many of two terms", "gain")):
        base, adapter = base_of(tmp_path / f"base{number}", dtype), ADAPTERS[how](tmp_path / how)
        adaptertool.merge(base, [adapter], tmp_path / f"one{number}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused_change, "FUNCTIONS", {})
            adaptertool.merge(base, [adapter], tmp_path / f"other{number}")
        one, other = (load(tmp_path / f"{name}{number}")["l.weight"] for name in ("one", "other"))
        assert same_bits(one, other)
    assert made and all(made)


@pytest.mark.parametrize("how", ["few elements", "circulant", "gain"])
def test_numbers_of_the_base_that_are_none(tmp_path: Path, how: str) -> None:
    """Also where nothing is changed."""
    adapter = ADAPTERS[how](tmp_path / "a")
    for number, bad in enumerate((torch.nan, torch.inf)):
        for place in (0, OUT * WIDE - 1):
            weight = torch.randn(OUT, WIDE).bfloat16()
            weight.view(-1)[place] = bad
            base = write_checkpoint(tmp_path / f"base{number}{place}", {"l.weight": weight})
            with pytest.raises(NonFiniteError, match=r"element \(\d+, \d+\) holds"):
                adaptertool.merge(base, [adapter], tmp_path / "out")
            assert not (tmp_path / "out").exists()


def test_precision_fast_has_bytes_of_its_own(tmp_path: Path, made: list[bool]) -> None:
    adapter = ADAPTERS["circulant"](tmp_path / "a")
    adaptertool.merge(base_of(tmp_path / "base", torch.bfloat16), [adapter], tmp_path / "out", precision="fast")
    assert not made
