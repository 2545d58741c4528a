"""Rotations against rationals: every element the correct rounding, whatever the blocks, stages, orders and dtypes."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import same_bits
from oracle import fractions
from rationals import EVERY, NARROW, Matrix, delta, dora_exactly, matrix, require
from rotations import LAYER, Rotation, interpolated, placed, random, result, rotated, use_rotations

import adaptertool
from adaptertool.arithmetic import blocks, correct_rounding, elements, requirements, tiling
from adaptertool.codecs import BF16
from adaptertool.errors import UnsupportedError
from adaptertool.files.header import read_header
from adaptertool.files.reader import Inputs
from adaptertool.kinds.rotation import ROTATION
from adaptertool.live.change import change
from adaptertool.numerics.ops import DIGITS, DOUBLES, FLOATS
from adaptertool.spec.plan import Edit, Step
from adaptertool.spec.tensors import View

every_output = pytest.mark.parametrize("output", EVERY)
both_ways = pytest.mark.parametrize("transposed", [False, True])
KINDS = [(1, 1, False), (2, 3, True), (8, 2, True), (32, 1, False)]


@pytest.fixture(autouse=True)
def rotations(monkeypatch: pytest.MonkeyPatch) -> None:
    use_rotations(monkeypatch)


def base_of(rows: int, columns: int, output: torch.dtype) -> torch.Tensor:
    """With zeros of both signs."""
    base = (torch.randn(rows, columns, dtype=torch.float64) / 8).to(output)
    base[0, :2], base[1] = -0.0, 0.0
    return base


def lora(rows: int, columns: int, *, dora: bool = False) -> dict[str, torch.Tensor]:
    found = {"lora_A.weight": torch.randn(2, columns), "lora_B.weight": torch.randn(rows, 2) / 8}
    return found | ({"lora_magnitude_vector": torch.rand(rows) + 0.5} if dora else {})


def added(rows: Matrix, factors: dict[str, torch.Tensor]) -> Matrix:
    change = delta(factors["lora_A.weight"], factors["lora_B.weight"])
    if "lora_magnitude_vector" in factors:
        return dora_exactly(rows, change, fractions(factors["lora_magnitude_vector"]), Fraction(1))
    return [[w + d for w, d in zip(*both, strict=True)] for both in zip(rows, change, strict=True)]


@pytest.mark.long("output")
@both_ways
@every_output
@pytest.mark.parametrize("weight", [1.0, 0.5, -1.0, 0.0])
@pytest.mark.parametrize(("wide", "stages", "mixed"), KINDS)
def test_every_element_is_the_rounding_of_the_formula(
    tmp_path: Path, output: torch.dtype, weight: float, wide: int, stages: int, *, mixed: bool, transposed: bool
) -> None:
    rotation, base = random(wide, 32, wide, stages, mixed=mixed), base_of(5, 32, output)
    checkpoint, adapters = placed(tmp_path, base, rotation, transposed=transposed)
    adaptertool.merge(checkpoint, adapters, tmp_path / "out", weights=[weight])
    require(result(tmp_path / "out", transposed=transposed), rotated(matrix(base), rotation, weight), base)


@pytest.mark.long
@both_ways
@every_output
@pytest.mark.parametrize("weight", [1.0, -0.3])
def test_rows_are_scaled_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: torch.dtype, weight: float, *, transposed: bool
) -> None:
    """Also in a chain, in small blocks, where every element is settled alone, and by wise."""
    rotation, base = random(3, 16, 4, 2, mixed=True, rows=9), base_of(9, 16, output)
    factors = lora(9, 16)
    exact = rotated(added(matrix(base), factors), rotation, weight)
    checkpoint, adapters = placed(tmp_path, base, factors, rotation, transposed=transposed)
    for name, settings in {"usual": {}, "small": {"most": 1 << 14, "size": 40}, "rows": {"most": 1}}.items():
        with monkeypatch.context() as patch:
            patch.setattr(requirements, "_MOST_NEIGHBOURS", settings.get("most", 1 << 10))
            patch.setattr(tiling, "BLOCK_ELEMENTS", settings.get("size", 1 << 18))
            adaptertool.merge(checkpoint, adapters, tmp_path / name, weights=[1.0, weight], verify=True)
        require(result(tmp_path / name, transposed=transposed), exact, base)
    alone, adapters = placed(tmp_path / "alone", base, rotation, transposed=transposed)
    adaptertool.wise(alone, adapters[0], tmp_path / "wise", str(weight))
    wanted = interpolated(matrix(base), rotated(matrix(base), rotation), weight)
    require(result(tmp_path / "wise", transposed=transposed), wanted, base)


@both_ways
@every_output
def test_middles_and_a_hair_beside_them(tmp_path: Path, output: torch.dtype, *, transposed: bool) -> None:
    """1 + half a unit by the blocks, and 2^-k more or less by their low parts: to the last they decide."""
    half, powers = torch.finfo(output).eps / 2, 2.0 ** -np.arange(30.0, 70.0)
    hairs = np.concatenate([[0.0], powers, -powers]) * half
    high = np.zeros((1, len(hairs), 2, 2))
    high[..., 0, 0], high[..., 1, 0], high[..., 1, 1] = 1.0, half, -1.0
    low = np.zeros_like(high)
    low[0, :, 1, 0] = hairs
    base = torch.ones(3, 2 * len(hairs), dtype=output)
    base[1] += torch.finfo(output).eps
    base[2, 1::2] = 0.0
    rotation = Rotation.of(high, low=low)
    checkpoint, adapters = placed(tmp_path, base, rotation, transposed=transposed)
    report = adaptertool.merge(checkpoint, adapters, tmp_path / "out")
    require(result(tmp_path / "out", transposed=transposed), rotated(matrix(base), rotation), base)
    assert report.settled_one_by_one < (len(hairs) if output == torch.float64 else 1)


@both_ways
@pytest.mark.parametrize("output", [torch.bfloat16, torch.float64])
def test_few_bits_make_middles_and_zeros(tmp_path: Path, output: torch.dtype, *, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    rotation = Rotation.of(rng.integers(-2, 3, (2, 4, 4, 4)) / 4, np.stack([rng.permutation(16) for _ in range(2)]))
    base = (torch.randint(-24, 25, (12, 16)) * 2.0 ** torch.randint(-6, 1, (12, 16))).to(output)
    checkpoint, adapters = placed(tmp_path, base, rotation, transposed=transposed)
    report = adaptertool.merge(checkpoint, adapters, tmp_path / "out")
    require(result(tmp_path / "out", transposed=transposed), rotated(matrix(base), rotation), base)
    assert report.settled_one_by_one == 0


@both_ways
@every_output
@pytest.mark.parametrize("weight", [1.0, -0.3])
def test_wide_ranges(tmp_path: Path, output: torch.dtype, weight: float, *, transposed: bool) -> None:
    """Outliers, cancellation, subnormal numbers; and blocks with a low part that is no rounding of the high one."""
    rng = np.random.default_rng(1)
    shape, floor = (2, 4, 4, 4), dict(zip(EVERY, (120, 24, 140, 1050), strict=True))[output]
    high = rng.standard_normal(shape) * 2.0 ** rng.integers(-40, 2, shape)
    high[rng.random(shape) < 0.3] = 0.0
    high[0, 0] = [[1, 1, 0, 0], [-1, -1, 0, 0], [1, 1 + 2.0**-52, 0, 1], [0, 2.0**-300, 1, 0]]
    low = rng.standard_normal(shape) * 2.0 ** rng.integers(-90, -20, shape)
    rotation = Rotation.of(high, np.stack([rng.permutation(16) for _ in range(2)]), low)
    base = torch.randn(12, 16, dtype=torch.float64) * 2.0 ** torch.randint(-floor, 6, (12, 16)).double()
    base[:, :4] = base[:, :1]
    base[torch.rand(12, 16) < 0.2] = -0.0
    checkpoint, adapters = placed(tmp_path, base := base.to(output), rotation, transposed=transposed)
    adaptertool.merge(checkpoint, adapters, tmp_path / "out", weights=[weight])
    require(result(tmp_path / "out", transposed=transposed), rotated(matrix(base), rotation, weight), base)


@pytest.mark.long("chain")
@both_ways
@every_output
@pytest.mark.parametrize("chain", ["lora, rotation", "rotation, lora", "rotation, dora", "dora, rotation, lora"])
def test_in_chains_with_other_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: torch.dtype, chain: str, *, transposed: bool
) -> None:
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 40)
    base, factors = base_of(5, 16, output), []
    exact = matrix(base)
    for kind in chain.split(", "):
        one: Any = random(3, 16, 4, 2, mixed=True) if kind == "rotation" else lora(5, 16, dora=kind == "dora")
        exact = rotated(exact, one) if isinstance(one, Rotation) else added(exact, one)
        factors.append(one)
    if "dora" in chain:
        base, exact = base[2:], exact[2:]  # no row of norm 0
        for one in factors:
            if not isinstance(one, Rotation):
                one |= {role: tensor[2:] for role, tensor in one.items() if role != "lora_A.weight"}
    checkpoint, adapters = placed(tmp_path, base, *factors, transposed=transposed)
    adaptertool.merge(checkpoint, adapters, tmp_path / "out")
    require(result(tmp_path / "out", transposed=transposed), exact, base)


@both_ways
@every_output
def test_on_the_way_between_both_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: torch.dtype, *, transposed: bool
) -> None:
    """Blocks of a few rows; where the tensor is stored transposed, one."""
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 40)
    rotation, base = random(5, 16, 4, 2, mixed=True, near=0.25), base_of(9, 16, output)
    checkpoint, adapters = placed(tmp_path, base, rotation, transposed=transposed)
    adaptertool.wise(checkpoint, adapters[0], tmp_path / "out", ["0", "0.3", "1", "1.5", "-0.5"])
    before = matrix(base)
    for alpha in (0.0, 0.3, 1.0, 1.5, -0.5):
        exact = interpolated(before, rotated(before, rotation), alpha)
        require(result(tmp_path / "out" / f"alpha-{alpha:.3f}", transposed=transposed), exact, base)


@both_ways
def test_part_of_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, transposed: bool) -> None:
    """Output rows 2..6 of 9, as of one projection of several."""
    part = range(2, 6)
    view = View(9, range(16), part, (16, 4)) if transposed else View(16, part, range(16), (4, 16))
    use_rotations(monkeypatch, view)
    for output in EVERY:
        folder = tmp_path / str(output)
        rotation, base = random(5, 16, 4), base_of(9, 16, output)
        checkpoint, adapters = placed(folder, base, rotation, transposed=transposed)
        adaptertool.merge(checkpoint, adapters, folder / "out")
        rows = matrix(base)
        rows[2:6] = rotated(rows[2:6], rotation)
        require(result(folder / "out", transposed=transposed), rows, base)


def test_what_changes_nothing_keeps_every_bit(tmp_path: Path) -> None:
    rotation = Rotation.of(np.tile(np.eye(4), (2, 4, 1, 1)), np.stack([np.arange(16)[::-1], np.arange(16)]))
    for output in EVERY:
        folder, base = tmp_path / str(output), base_of(9, 16, output)
        checkpoint, adapters = placed(folder, base, rotation)
        report = adaptertool.merge(checkpoint, adapters, folder / "out")
        assert same_bits(result(folder / "out"), base) and not report.settled


@both_ways
def test_settled_by_rationals_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, transposed: bool) -> None:
    def all_open(values: Any, *rest: Any, **more: Any) -> Any:
        BF16.encode(values, *rest, **more)
        return np.arange(len(values))

    rotation, base = random(7, 12, 3, 2, mixed=True), base_of(4, 12, torch.bfloat16)
    checkpoint, adapters = placed(tmp_path, base, rotation, lora(4, 12), transposed=transposed)
    adaptertool.merge(checkpoint, adapters, tmp_path / "usual")
    monkeypatch.setattr(blocks, "BY_DTYPE", {"BF16": dataclasses.replace(BF16, encode=all_open)})
    monkeypatch.setattr(correct_rounding, "DOUBLES", dataclasses.replace(DOUBLES, blockwise=None))
    monkeypatch.setattr(correct_rounding, "DIGITS", dataclasses.replace(DIGITS, blockwise=None))
    monkeypatch.setattr(correct_rounding, "UNIT", 2.0**-7)
    report = adaptertool.merge(checkpoint, adapters, tmp_path / "rationals")
    assert report.settled_one_by_one == report.settled > 5
    assert same_bits(result(tmp_path / "usual"), result(tmp_path / "rationals"))


@pytest.mark.long
@both_ways
@pytest.mark.parametrize("most", [1, 1 << 14])
@pytest.mark.parametrize("output", NARROW)
def test_elements_alone_and_in_rows_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: torch.dtype, most: int, *, transposed: bool
) -> None:
    monkeypatch.setattr(requirements, "_MOST_NEIGHBOURS", most)
    rotation, base = random(9, 64, 8), base_of(70, 64, output)
    base[:, 8:16] = 0.0  # which stay so, and are open
    checkpoint, adapters = placed(tmp_path, base, rotation, transposed=transposed)
    exact = rotated(matrix(base), rotation)
    for size in (1, 200, 1 << 14):
        monkeypatch.setattr(elements, "_PART", size)
        monkeypatch.setattr(elements, "_GAP", size)
        report = adaptertool.merge(checkpoint, adapters, tmp_path / f"{size}")
        require(result(tmp_path / f"{size}", transposed=transposed), exact, base)
        assert report.settled > 0 and not report.settled_one_by_one


@both_ways
def test_verify_finds_it_right_and_another_wrong(tmp_path: Path, *, transposed: bool) -> None:
    rotation, base = random(5, 64, 8, 2, mixed=True, near=0.3), base_of(96, 64, torch.bfloat16)
    checkpoint, adapters = placed(tmp_path, base, rotation, transposed=transposed)
    adaptertool.merge(checkpoint, adapters, tmp_path / "right", verify=True)
    assert adaptertool.verify(tmp_path / "right", checkpoint, adapters, strict=True).ok
    adaptertool.merge(checkpoint, adapters, tmp_path / "scaled", weights=["0.7"])
    report = adaptertool.verify(tmp_path / "scaled", checkpoint, adapters)
    assert not report.ok
    wrong = next(tensor for tensor in report.tensors if tensor.diagnosis)
    assert wrong.diagnosis == "wrong-scale" and wrong.fitted_scale == pytest.approx(0.7, abs=0.02)
    assert not adaptertool.verify(checkpoint, checkpoint, adapters).ok


def test_fast_is_near(tmp_path: Path) -> None:
    rotation, base = random(5, 64, 8, 2, mixed=True), base_of(96, 64, torch.bfloat16)
    checkpoint, adapters = placed(tmp_path, base, rotation)
    adaptertool.merge(checkpoint, adapters, tmp_path / "out")
    adaptertool.merge(checkpoint, adapters, tmp_path / "fast", precision="fast")
    one, other = (result(tmp_path / name).double() for name in ("out", "fast"))
    torch.testing.assert_close(one, other, rtol=2.0**-7, atol=1e-5)


def test_acting_together_with_another_is_refused(tmp_path: Path) -> None:
    checkpoint, adapters = placed(tmp_path, base_of(4, 16, torch.float32), random(5, 16, 4), lora(4, 16))
    with pytest.raises(UnsupportedError, match=r"c_attn\.weight: what rotation changes depends on the weight"):
        adaptertool.merge(checkpoint, adapters, tmp_path / "out", compose="mixed")
    adaptertool.merge(checkpoint, adapters[:1], tmp_path / "out", compose="mixed")


@both_ways
def test_drift_compares_the_weights(tmp_path: Path, *, transposed: bool) -> None:
    base = base_of(70, 64, torch.bfloat16)
    checkpoint, adapters = placed(tmp_path, base, random(5, 64, 8, near=0.3), transposed=transposed)
    (module,) = adaptertool.drift(checkpoint, adapters).modules
    assert module.kinds == ("rotation",) and module.verdict == "expected" and not module.outputs
    assert 0 < module.weight.rel_error < 2.0**-8


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_tensors_of_torch(weight: float) -> None:
    """Also a transposed view, which is changed in place."""
    rotation, rows = random(5, 16, 4, 3, mixed=True), torch.randn(7, 16, dtype=torch.float64)
    factors = {role.partition(".")[2]: tensor for role, tensor in rotation.tensors(0).items()}
    exact = [[float(value) for value in row] for row in rotated(matrix(rows), rotation, weight)]
    for dtype, error in ((torch.float64, 1e-14), (torch.float32, 1e-5)):
        own = {role: tensor.to(dtype) for role, tensor in factors.items()}
        straight, columns = rows.to(dtype, copy=True), rows.T.to(dtype).contiguous()
        for some in (straight, columns.T):
            ROTATION.apply(FLOATS, some, own, 1.0, weight)
            torch.testing.assert_close(some.double(), torch.tensor(exact, dtype=torch.float64), atol=error, rtol=error)


@both_ways
def test_weights_in_memory(tmp_path: Path, *, transposed: bool) -> None:
    rotation, base = random(5, 16, 4, 2, mixed=True, rows=6), torch.randn(6, 16)
    checkpoint, _ = placed(tmp_path, base, rotation, transposed=transposed)
    header = read_header(checkpoint / "model.safetensors")
    ref, factors = header.tensors[f"{LAYER}.weight"], {role: header.tensors[f"0.{role}"] for role in ROTATION.roles}
    step = Step(ref.spec, 0, ref, (Edit("rotation", 0, LAYER, factors, 1.0, 1.0, transposed=transposed),))
    tensor = base.T.contiguous() if transposed else base.clone()
    with Inputs({header.path: header.stamp}) as inputs:
        change(tensor, step, 1.0, inputs)
    exact = [[float(value) for value in row] for row in rotated(matrix(base), rotation)]
    torch.testing.assert_close(tensor.T if transposed else tensor, torch.tensor(exact))
    assert tiling.rows_at_once(step) == (16 if transposed else tiling.BLOCK_ELEMENTS // 16)


def test_no_adapter_holds_a_part_of_it(tmp_path: Path) -> None:
    checkpoint, adapters = placed(tmp_path, base_of(4, 16, torch.float32), random(5, 16, 4))
    with pytest.raises(UnsupportedError, match="rotation"):
        adaptertool.wise(checkpoint, adapters[0], tmp_path / "out", "0.5", as_adapter=True)
