"""wise: the ends byte for byte, the middle against rationals, sweeps equal to single runs."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import fractions, half_ulp_excess, round_fraction
from safetensors.torch import save_file

import adaptertool
from adaptertool.arguments import parse_alphas
from adaptertool.errors import InputError, MismatchError, NonFiniteError, UnsupportedError, UsageError

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def weights(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in snapshot(folder).items() if name != "adaptertool.manifest.json"}


def pair(tmp_path: Path, dtype: torch.dtype = torch.bfloat16) -> tuple[Path, Path]:
    """Base and tuned, of one layout, with all that is awkward: −0.0, equal tensors, NaN, integers, a scalar."""
    base = {
        "a.weight": torch.randn(30, 20).to(dtype),
        "frozen.weight": torch.randn(8).to(dtype),
        "position_ids": torch.arange(7),
        "zero.weight": torch.tensor([0.0, -0.0, 0.0, -0.0]).to(dtype),
        "scale": torch.tensor(1.5).to(dtype),
        "empty": torch.empty(0, 4).to(dtype),
    }
    tuned = dict(base)
    tuned["a.weight"] = base["a.weight"] + torch.randn(30, 20).to(dtype) / 16
    tuned["zero.weight"] = torch.tensor([0.0, -0.0, -0.0, 0.0]).to(dtype)
    tuned["scale"] = torch.tensor(1.75).to(dtype)
    return write_checkpoint(tmp_path / "base", base, shards=2), write_checkpoint(tmp_path / "tuned", tuned, shards=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_are_the_checkpoints_byte_for_byte(tmp_path: Path, dtype: torch.dtype) -> None:
    base, tuned = pair(tmp_path, dtype)
    adaptertool.wise(base, tuned, tmp_path / "out", [0, 0.5, 1])
    assert weights(tmp_path / "out" / "alpha-0.000") == weights(base)
    assert weights(tmp_path / "out" / "alpha-1.000") == weights(tuned)
    middle = load(tmp_path / "out" / "alpha-0.500")
    assert same_bits(middle["frozen.weight"], load(base)["frozen.weight"])
    assert not same_bits(middle["a.weight"], load(base)["a.weight"])


@pytest.mark.parametrize("alpha", ["0.125", "0.5", "-0.25", "1.5"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_middle_is_rounded_correctly(tmp_path: Path, dtype: torch.dtype, alpha: str) -> None:
    base, tuned = pair(tmp_path, dtype)
    adaptertool.wise(base, tuned, tmp_path / "out", [alpha])
    w, t, out = (fractions(load(path)["a.weight"]) for path in (base, tuned, tmp_path / "out"))
    factor = Fraction(float(alpha))
    assert out == [round_fraction(x + factor * (y - x), dtype) for x, y in zip(w, t, strict=True)]


@pytest.mark.parametrize("alpha", ["0.1", "0.3", "0.7"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_alpha_is_within_half_an_ulp(tmp_path: Path, dtype: torch.dtype, alpha: str) -> None:
    base, tuned = pair(tmp_path, dtype)
    adaptertool.wise(base, tuned, tmp_path / "out", [alpha])
    w, t, out = (load(path)["a.weight"] for path in (base, tuned, tmp_path / "out"))
    exact = w.double() + float(alpha) * (t.double() - w.double())
    assert half_ulp_excess(out, exact).max() <= 1 + 1e-9


@settings(max_examples=20, deadline=None)
@given(alphas=st.lists(st.decimals(-2, 2, places=3), min_size=2, max_size=4, unique=True))
def test_a_sweep_equals_single_runs(tmp_path_factory: pytest.TempPathFactory, alphas: list[Decimal]) -> None:
    tmp_path = tmp_path_factory.mktemp("sweep")
    base, tuned = pair(tmp_path)
    report = adaptertool.wise(base, tuned, tmp_path / "sweep", alphas)
    for alpha, folder in zip(alphas, report.outputs, strict=True):
        adaptertool.wise(base, tuned, tmp_path / f"single {alpha}", [alpha])
        assert snapshot(Path(folder)) == snapshot(tmp_path / f"single {alpha}")


def test_alpha_one_of_an_adapter_is_the_merge(tmp_path: Path) -> None:
    for name in ("lora", "rslora"):
        adaptertool.merge(FIXTURES / "base", [FIXTURES / name], tmp_path / name)
        adaptertool.wise(FIXTURES / "base", FIXTURES / name, tmp_path / f"{name}-1", [1])
        adaptertool.wise(FIXTURES / "base", FIXTURES / name, tmp_path / f"{name}-0", [0])
        assert weights(tmp_path / f"{name}-1") == weights(tmp_path / name)
        assert weights(tmp_path / f"{name}-0") == weights(FIXTURES / "base")


def test_an_adapter_in_the_middle_scales_every_change(tmp_path: Path) -> None:
    """Saved modules too, not only the low-rank part: W + α·(T − W)."""
    q = "model.layers.0.mlp.up_proj"
    base = write_checkpoint(tmp_path / "base", {f"{q}.weight": torch.randn(12, 8), "norm.weight": torch.randn(8)})
    norm = torch.randn(8)
    factors = lora_factors(q, (12, 8)) | {"norm.weight": norm}
    adapter = write_adapter(tmp_path / "a", factors, modules_to_save=["norm"])
    adaptertool.wise(base, adapter, tmp_path / "out", [0.25])
    before, out = load(base), load(tmp_path / "out")
    assert torch.allclose(out["norm.weight"], before["norm.weight"] + 0.25 * (norm - before["norm.weight"]))
    low_rank = 2 * factors[f"{q}.lora_B.weight"] @ factors[f"{q}.lora_A.weight"]
    assert torch.allclose(out[f"{q}.weight"], before[f"{q}.weight"] + 0.25 * low_rank, atol=1e-6)


def test_far_apart_magnitudes_reach_the_tuned_value(tmp_path: Path) -> None:
    """W + 1·(T − W) in floating point would lose T here."""
    base = write_checkpoint(tmp_path / "base", {"a": torch.tensor([1e30, 1.0])})
    tuned = write_checkpoint(tmp_path / "tuned", {"a": torch.tensor([1e-30, 1e-30])})
    adaptertool.wise(base, tuned, tmp_path / "out", [0, 1])
    assert same_bits(load(tmp_path / "out" / "alpha-1.000")["a"], load(tuned)["a"])


def test_layouts_may_differ(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    whole = write_checkpoint(tmp_path / "whole", load(tuned))
    adaptertool.wise(base, tuned, tmp_path / "1", [0.3])
    adaptertool.wise(base, whole, tmp_path / "2", [0.3])
    assert snapshot(tmp_path / "1").keys() == snapshot(tmp_path / "2").keys()
    assert weights(tmp_path / "1") == weights(tmp_path / "2")


def test_tuned_in_another_dtype_is_said(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    wide = {k: t.float() if t.is_floating_point() else t for k, t in load(tuned).items()}
    wide["a.weight"] += 1e-4
    report = adaptertool.wise(base, write_checkpoint(tmp_path / "wide", wide), tmp_path / "out", [1])
    assert any("F32 are stored as BF16" in note for note in report.notes)
    out = load(tmp_path / "out")["a.weight"]
    assert fractions(out) == [round_fraction(x, torch.bfloat16) for x in fractions(wide["a.weight"])]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    tensors = load(tuned)

    def wise(change: dict[str, torch.Tensor | None]) -> None:
        changed = {k: t for k, t in (tensors | change).items() if t is not None}
        save_file(changed, tmp_path / "changed.safetensors")
        adaptertool.wise(base, tmp_path / "changed.safetensors", tmp_path / "out", [0.5])

    with pytest.raises(MismatchError, match=r"1 tensors are in .*base but not in .*changed.*: a\.weight"):
        wise({"a.weight": None})
    with pytest.raises(MismatchError, match=r"in .*changed.* but not in .*base: b\.weight"):
        wise({"b.weight": torch.ones(2)})
    with pytest.raises(MismatchError, match=r"a\.weight is BF16 30×20 in .*, but BF16 20×30"):
        wise({"a.weight": torch.ones(20, 30).bfloat16()})
    with pytest.raises(MismatchError, match=r"position_ids is I64 7 in .*, but BF16 7"):
        wise({"position_ids": torch.ones(7).bfloat16()})
    with pytest.raises(MismatchError, match=r"position_ids \(I64 7\) differs"):
        wise({"position_ids": torch.arange(7) + 1})
    with pytest.raises(InputError, match=r"changed\.safetensors: scale holds inf; it cannot be interpolated"):
        wise({"scale": torch.tensor(float("inf")).bfloat16()})
    assert not (tmp_path / "out").exists()


def test_quantised_checkpoints_are_refused(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(4, 4), "a.weight_scale": torch.ones(1)}
    base, tuned = write_checkpoint(tmp_path / "b", tensors), write_checkpoint(tmp_path / "t", tensors)
    with pytest.raises(UnsupportedError, match=r"a\.weight_scale stands beside it"):
        adaptertool.wise(base, tuned, tmp_path / "out", [0.5])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3", ["0.3"]),
        ("0,0.3,1", ["0", "0.3", "1"]),
        ("0:0.3:0.1", ["0", "0.1", "0.2", "0.3"]),
        ("0:1:0.3", ["0", "0.3", "0.6", "0.9"]),
        ("1:0:-0.5", ["1", "0.5", "0"]),
        ("0.5:0.5:1", ["0.5"]),
        (" 0 , 1e-1 ", ["0", "0.1"]),
    ],
)
def test_alphas(text: str, expected: list[str]) -> None:
    assert parse_alphas(text) == [Decimal(number) for number in expected]


@pytest.mark.parametrize(
    "text", ["", "x", "0:1", "0:1:0", "0:1:-1", "1:0:1", "nan", "inf", "0:inf:1", "0,,1", "0:1:1e-9", "1e999"]
)
def test_bad_alphas(text: str) -> None:
    with pytest.raises(UsageError):
        parse_alphas(text)


def test_folder_names(tmp_path: Path) -> None:
    """Three decimals, more where they are needed to tell the points apart; an alpha twice is an error."""
    base, tuned = pair(tmp_path)
    for alphas, names in (
        (["0", "0.30", "1"], ["alpha-0.000", "alpha-0.300", "alpha-1.000"]),
        (["0.0005", "1"], ["alpha-0.0005", "alpha-1.0000"]),
        (["-0.5", "1e1"], ["alpha--0.500", "alpha-10.000"]),
    ):
        report = adaptertool.wise(base, tuned, tmp_path / str(alphas), alphas)
        assert [Path(output).name for output in report.outputs] == names
        assert sorted(path.name for path in (tmp_path / str(alphas)).iterdir() if path.is_dir()) == sorted(names)
    with pytest.raises(UsageError, match="twice"):
        adaptertool.wise(base, tuned, tmp_path / "out", ["0.3", "0.30"])


def test_manifest_names_the_recipe(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    adaptertool.wise(base, tuned, tmp_path / "out", [0, 0.5])
    assert json.loads((tmp_path / "out" / "adaptertool.manifest.json").read_text())["recipe"]["alphas"] == [0.0, 0.5]
    single = json.loads((tmp_path / "out" / "alpha-0.500" / "adaptertool.manifest.json").read_text())
    assert single["recipe"] == {
        "command": "wise",
        "base": "base",
        "sources": [{"name": "tuned", "weight": 1.0}],
        "alphas": [0.5],
        "precision": "exact",
    }


def test_a_replacement_keeps_its_zeros_where_the_dtype_is_cast(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"a": torch.tensor([-0.0, 0.0, -0.0]).bfloat16()})
    tuned = write_checkpoint(tmp_path / "tuned", {"a": torch.tensor([0.0, -0.0, -0.0])})
    adaptertool.wise(base, tuned, tmp_path / "out", 1)
    assert load(tmp_path / "out")["a"].signbit().tolist() == [False, True, True]


def test_text_and_single_numbers_are_alphas_too(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    adaptertool.wise(base, tuned, tmp_path / "1", 0.5)
    adaptertool.wise(base, tuned, tmp_path / "2", "0.5")
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")
    assert len(adaptertool.prepare_wise(base, tuned, "0:1:0.1").outputs) == 11
    precise = "0.1000000000000000055511151231257827021181583404541015624"
    assert adaptertool.prepare_wise(base, tuned, precise).outputs[0].alpha == float(precise)


def test_an_empty_edited_tensor(tmp_path: Path) -> None:
    tensors = {"l.weight": torch.empty(4, 0)}
    factors = {"l.lora_A.weight": torch.empty(2, 0), "l.lora_B.weight": torch.ones(4, 2)}
    adapter = write_adapter(tmp_path / "a", factors, r=2)
    report = adaptertool.merge(write_checkpoint(tmp_path / "base", tensors), [adapter], tmp_path / "out", weights=["1"])
    assert (report.tensors_edited, load(tmp_path / "out")["l.weight"].shape) == (0, (4, 0))


@pytest.mark.parametrize("alpha", ["0.5", "1", "0.3"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_a_tuned_tensor_that_is_not_finite(tmp_path: Path, dtypes: tuple[str, str], value: float, alpha: str) -> None:
    base, tuned = (torch.randn(4, 8).to(getattr(torch, dtype)) for dtype in dtypes)
    tuned[1, 2] = value
    places = [write_checkpoint(tmp_path / name, {"x.weight": t}) for name, t in (("b", base), ("t", tuned))]
    if alpha == "1" and dtypes[0] == dtypes[1]:
        return  # copied
    with pytest.raises(NonFiniteError, match=r"x\.weight.*holds (nan|inf)|beyond the range|not a number"):
        adaptertool.wise(*places, tmp_path / "out", [alpha])
    assert not (tmp_path / "out").exists()
