"""The compiled kernel, at every level of instructions that this processor has, and its twins in numpy give the same
bits; sums are within the bounds that are counted on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES, write_adapter, write_checkpoint
from conftest import adaptertool as command

import adaptertool
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.numerics import compiled, product, rounding

STORED = ["BF16", "F16", "F32"]
WIDE = [np.float32, np.float64]
needs_kernel = pytest.mark.skipif(not compiled.FUNCTIONS, reason="no compiled kernel: there was no C compiler")


ALL = [None, *compiled.levels()]  # None is numpy


@pytest.fixture
def at_level(monkeypatch: pytest.MonkeyPatch) -> Any:
    def switch(level: str | None) -> None:
        for module in (rounding, product):
            monkeypatch.setattr(module, "FUNCTIONS", compiled.functions(level))

    return switch


def test_kernel_is_there_where_a_compiler_is() -> None:
    """Without it all works, and takes longer; but it must not be lost unseen."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    assert compiled.FUNCTIONS and compiled.levels()[0] == "baseline"


def test_a_level_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that this processor does not have is passed over."""
    for wanted, found in (("off", None), ("v9", compiled.levels()[-1:]), *((level, (level,)) for level in ALL[1:])):
        monkeypatch.setenv("ADAPTERTOOL_KERNEL", str(wanted))
        if found is not None:
            assert compiled._chosen() == (found[0] if found else None)
        else:
            assert compiled._load() is None


def test_a_library_of_other_sources_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take its arguments in another order: what it made of them would be wrong in silence."""
    folder = Path(compiled.__file__).parent
    if not (folder / "_kernel.so").exists():
        pytest.skip("no C compiler")
    shutil.copytree(folder / "kernel", tmp_path / "kernel")
    shutil.copy(folder / "_kernel.so", tmp_path)
    monkeypatch.setattr(compiled, "_FILE", tmp_path / "_kernel.so")
    assert compiled._load() is not None
    with (tmp_path / "kernel" / "level.h").open("a") as source:
        source.write("\n")
    assert compiled._load() is None


def every_value(dtype: str, rng: np.random.Generator) -> Any:
    """All 16-bit patterns; of float32 all exponents with many fractions."""
    if dtype != "F32":
        return np.arange(1 << 16, dtype=np.uint16)
    return rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)


@needs_kernel
@pytest.mark.parametrize("wide", WIDE)
@pytest.mark.parametrize("dtype", STORED)
def test_widening(dtype: str, wide: Any, at_level: Any) -> None:
    stored = every_value(dtype, np.random.default_rng(0))
    results = []
    for level in ALL:
        at_level(level)
        out = np.empty(len(stored), wide)
        some = np.isfinite(doubles(stored, dtype))
        results.append((rounding.widen(stored, dtype, out), out))
        assert rounding.widen(stored[some], dtype, out[: some.sum()].copy()) < np.inf
    for largest, out in results:
        assert np.array_equal(results[0][1], out, equal_nan=True)
        assert np.array_equal(np.signbit(results[0][1]), np.signbit(out))
        assert not np.isfinite(largest)


def awkward(dtype: str, wide: Any, rng: np.random.Generator) -> Any:
    """Middles of stored values and what lies beside them, the ends of the range, numbers of all sizes."""
    stored = doubles(every_value(dtype, rng), dtype)
    stored = np.sort(stored[np.isfinite(stored)])
    with np.errstate(all="ignore"):
        middles = ((stored[1:] + stored[:-1]) / 2).astype(wide)
        beside = [np.nextafter(middles, wide(np.inf)), np.nextafter(middles, wide(-np.inf))]
        others = (rng.standard_normal(5000) * 2.0 ** rng.integers(-150, 130, 5000)).astype(wide)
    ends = np.array([0.0, -0.0, np.inf, -np.inf, np.finfo(wide).max, np.finfo(wide).tiny], wide)
    return np.concatenate([middles, *beside, others, ends])


@needs_kernel
@pytest.mark.parametrize(("error", "relative"), [(0.0, 0.0), (1e-9, 0.0), (2.0**-140, 2.0**-22), (1e30, 0.5)])
@pytest.mark.parametrize("wide", WIDE)
@pytest.mark.parametrize("dtype", STORED)
def test_rounding_within(dtype: str, wide: Any, error: float, relative: float, at_level: Any) -> None:
    if (dtype, wide) == ("F32", np.float32):
        return
    values, results = awkward(dtype, wide, np.random.default_rng(1)), []
    for level in ALL:
        at_level(level)
        out = np.empty(len(values), rounding.STORED[dtype])
        results.append((rounding.round_within(values, error, relative, dtype, out), out))
    for where, out in results:
        assert np.array_equal(results[0][0], where)
        assert results[0][1].tobytes() == out.tobytes()


@needs_kernel
@pytest.mark.parametrize(("error", "relative"), [(1e-9, 0.0), (5e-324, 2.0**-60), (0.0, 2.0**-53), (np.inf, 0.5)])
def test_rounding_within_of_float64(error: float, relative: float, at_level: Any) -> None:
    values, results = awkward("F32", np.float64, np.random.default_rng(1)), []
    for level in ALL:
        at_level(level)
        out = np.empty(len(values))
        results.append((rounding.round_within(values, error, relative, "F64", out), out))
    for where, out in results:
        assert np.array_equal(results[0][0], where)
        assert np.array_equal(results[0][1], out, equal_nan=True)


@needs_kernel
@pytest.mark.long("dtype")
@pytest.mark.parametrize(("error", "relative"), [(0.0, 0.0), (1e-9, 0.0), (2.0**-140, 2.0**-22), (0.0, 2.0**-24)])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_quick_rounding_is_never_certain_of_too_much(dtype: str, error: float, relative: float) -> None:
    """Ends that are rounded twice: all that is open when they are rounded once stays open, and hardly more is."""
    values = awkward(dtype, np.float64, np.random.default_rng(3))
    once, twice = (np.empty(len(values), np.uint16) for _ in range(2))
    open_once = rounding.round_within(values, error, relative, dtype, once)
    open_twice = rounding.round_within(values, error, relative, dtype, twice, quick=True)
    zeros = np.flatnonzero(abs(values) < 2.0**-140)  # −0 and +0 are told apart once there is an error at all
    assert np.isin(np.setdiff1d(open_once, zeros), open_twice).all()
    sure = np.setdiff1d(np.arange(len(values)), open_twice)
    assert np.array_equal(once[sure], twice[sure])
    others = rounded(np.random.default_rng(4).standard_normal(10**5), "F32").astype(np.float64)
    assert len(rounding.round_within(others, 0, 0, dtype, np.empty(len(others), np.uint16), quick=True)) < 100


@needs_kernel
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (4, 64, 16), (13, 37, 5), (66, 257, 256), (9, 128, 300)])
@pytest.mark.parametrize("wide", WIDE)
def test_products_and_squares(shape: tuple[int, int, int], wide: Any, at_level: Any) -> None:
    """Against longer arithmetic, within the bounds of kinds.lora and kinds.dora; also of rows that lie apart."""
    rng, (count, columns, rank) = np.random.default_rng(2), shape
    left, right = rng.standard_normal((count, rank)).astype(wide), rng.standard_normal((rank, columns)).astype(wide)
    unit, longest = float(np.finfo(wide).eps) / 2, [factor.astype(np.longdouble) for factor in (left, right)]
    whole = longest[0] @ longest[1]
    reach = np.sqrt((longest[0] ** 2).sum(1, keepdims=True) * (longest[1] ** 2).sum(0, keepdims=True))
    for level in ALL:
        at_level(level)
        for apart in (0, 3):
            stored = rng.standard_normal((count, columns + apart)).astype(wide)
            rows = stored[:, :columns]
            exact, beside = rows.astype(np.longdouble) + whole, stored[:, columns:].copy()
            squares = product.squares(rows, left.astype(np.float64), right.astype(np.float64))
            true = (exact**2).sum(1, keepdims=True)
            assert (abs(squares - true) <= (product.roundings(columns) + 2 * rank + 9) * 2.0**-53 * 4 * true).all()
            product.add_product(rows, left, right)
            assert (abs(rows - exact) <= (rank + 5) * unit * reach + unit * abs(exact) * 1.01).all()
            assert np.array_equal(stored[:, columns:], beside)


def test_arrays_that_do_not_fit_are_refused() -> None:
    """The kernel gets addresses only: what is too short or of another dtype would be read past its end."""
    good = np.zeros(8)
    for bad in (np.zeros(7), np.zeros(8, np.float32), np.zeros(16)[::2]):
        with pytest.raises(ValueError, match="not 8 contiguous elements"):
            compiled.address(bad, np.float64, 8)
    assert compiled.address(good, np.float64, 8) == good.ctypes.data


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_merges_are_the_same_at_every_level(tmp_path: Path, dtype: str, dora: bool, at_level: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = write_checkpoint(tmp_path / "base", {"x.weight": torch.randn(96, 160).to(getattr(torch, dtype))})
    factors = {"x.lora_A.weight": torch.randn(8, 160) / 8, "x.lora_B.weight": torch.randn(96, 8) / 8}
    if dora:
        factors["x.lora_magnitude_vector"] = torch.rand(96) * 9 + 4
    adapter = write_adapter(tmp_path / "adapter", factors, r=8, lora_alpha=4, use_dora=dora)
    for level in ALL:
        at_level(level)
        adaptertool.merge(base, [adapter], tmp_path / f"out{level}")
    assert len({(tmp_path / f"out{level}" / "model.safetensors").read_bytes() for level in ALL}) == 1


def test_a_run_without_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, told in (("off", True), ("", False)):
        monkeypatch.setenv("ADAPTERTOOL_KERNEL", setting)
        out = tmp_path / f"out{setting}"
        done = command("merge", FIXTURES / "base", FIXTURES / "lora", "-o", out)
        assert ("no compiled kernel of these sources" in done.stdout) == (told or not compiled.FUNCTIONS)
