"""Weights that a candidate stores as codes: honest ones, made on the base's scales or anew, and every fault by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tensors, load, lora_factors, write_adapter, write_checkpoint
from quantised_bases import BF16, I32, U8, Q, X, group, words

import adaptertool as library
from adaptertool.errors import InputError, UnsupportedError

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
SHAPE = (64, 64)
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
INT4 = group(num_bits=4, type="int", symmetric=True, group_size=32)
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
MXFP4 = group(num_bits=4, type="float", strategy="group", group_size=32)


def blocks(weight: torch.Tensor, down: int, across: int) -> torch.Tensor:
    """(blocks down, blocks across): the largest magnitude of each."""
    return weight.reshape(weight.shape[0] // down, down, -1, across).abs().amax((1, 3))


def spread(scale: torch.Tensor, down: int, across: int) -> torch.Tensor:
    return scale.repeat_interleave(down, 0).repeat_interleave(across, 1)


def fp8(weight: torch.Tensor, scale: torch.Tensor | None = None) -> Tensors:
    scale = (blocks(weight, 32, 32) / 448).float() if scale is None else scale
    codes = (weight / spread(scale.double(), 32, 32)).clamp(-448, 448).float().to(torch.float8_e4m3fn)
    return {f"{X}.weight": codes, f"{X}.weight_scale_inv": scale}


def packed(codes: torch.Tensor, scale: torch.Tensor, shape: tuple[int, int] = SHAPE) -> Tensors:
    """codes from −8 to 7"""
    return {f"{X}.weight_packed": words((codes + 8).int(), 4), f"{X}.weight_scale": scale,
            f"{X}.weight_shape": torch.tensor(shape)}  # fmt: skip


def int4_scale(weight: torch.Tensor) -> torch.Tensor:
    return (blocks(weight, 1, 32) / 7.5).to(BF16)


def int4_codes(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight / spread(scale.double(), 1, 32)).round().clamp(-8, 7)


def int4(weight: torch.Tensor, scale: torch.Tensor | None = None) -> Tensors:
    scale = int4_scale(weight) if scale is None else scale
    return packed(int4_codes(weight, scale), scale)


def mxfp4(weight: torch.Tensor, scale: torch.Tensor | None = None) -> Tensors:
    """Scales as OCP's specification has them: what lies beyond 6 is cut off."""
    scale = (torch.floor(torch.log2(blocks(weight, 1, 32))) - 2 + 127).to(U8) if scale is None else scale
    values = weight / spread(2.0 ** (scale.double() - 127), 1, 32)
    codes = (values.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * values.signbit()
    return {f"{X}.weight_packed": (codes[:, ::2] + 16 * codes[:, 1::2]).to(U8), f"{X}.weight_scale": scale}


def nf4(weight: torch.Tensor, _: torch.Tensor | None = None) -> Tensors:
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, state = functional.quantize_4bit(weight.to(BF16), quant_type="nf4")
    return {f"{X}.weight": codes} | {f"{X}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}


FORMATS: dict[str, tuple[Callable[..., Tensors], dict[str, Any], str]] = {
    "fp8": (fp8, FP8, "weight_scale_inv"),
    "int4": (int4, INT4, "weight_scale"),
    "mxfp4": (mxfp4, MXFP4, "weight_scale"),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "weight.absmax"),
}


class Case:
    """A base, an adapter with a change that shows in codes, and the exact merge."""

    def __init__(self, folder: Path, name: str, *, dense: bool = False, times: float = 1) -> None:
        self.folder, (self.quantise, self.config, self.scale) = folder, FORMATS[name]
        self.plain = {f"{Q}.weight": torch.randn(8, 6).to(BF16), "model.norm.weight": torch.ones(6, dtype=BF16)}
        weight = (torch.randn(SHAPE) * 0.02).to(BF16)
        self.stored = self.quantise(weight.double())
        tensors = {f"{X}.weight": weight} if dense else self.stored
        self.base = self.write("base", tensors, quantised=not dense)
        factors = lora_factors(X, SHAPE)
        factors[f"{X}.lora_B.weight"] *= times
        self.adapter = write_adapter(folder / "adapter", factors)
        a, b = (factors[f"{X}.lora_{one}.weight"].double() for one in "AB")
        self.change = 2 * b @ a
        self.before = weight.double() if dense else self.decoded()
        self.exact = self.before + self.change

    def decoded(self) -> torch.Tensor:
        name = f"{X}.weight"
        other = write_adapter(self.folder / "other", lora_factors(Q, (8, 6)))
        library.merge(self.base, [other], self.folder / "decoded", dtype="f32")
        return load(self.folder / "decoded")[name].double()

    def write(self, name: str, tensors: Tensors, *, quantised: bool = True) -> Path:
        config = CONFIG | ({"quantization_config": self.config} if quantised else {})
        return write_checkpoint(self.folder / name, self.plain | tensors, config=config)

    def judged(self, tensors: Tensors, *, quantised: bool = True, strict: bool = False) -> Any:
        merged = self.write("merged", tensors, quantised=quantised)
        return library.verify(merged, self.base, [self.adapter], strict=strict)

    def fault(self, tensors: Tensors) -> str | None:
        report = self.judged(tensors)
        (found,) = (verdict for verdict in report.tensors if verdict.name == f"{X}.weight")
        assert not report.ok and found.status == "wrong"
        return found.diagnosis


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_honest_merges(tmp_path: Path, name: str, dense: bool) -> None:
    """Quantised anew from the exact numbers, and from those that were rounded to bf16 before."""
    case = Case(tmp_path, name, dense=dense)
    assert case.judged(case.quantise(case.exact)).ok
    assert case.judged(case.quantise(case.exact.to(BF16).double())).ok


@pytest.mark.parametrize("name", ["fp8", "int4", "mxfp4"])
def test_on_the_scales_of_the_base(tmp_path: Path, name: str) -> None:
    """Exact, where these hold all numbers; made anew all the same it is right, and not exact."""
    case = Case(tmp_path, name, times=0.01)
    merged = case.quantise(case.exact, case.stored[f"{X}.{case.scale}"])
    assert case.judged(merged, strict=True).ok
    assert case.judged(case.quantise(case.exact)).ok


def test_on_scales_that_are_rounded_up(tmp_path: Path) -> None:
    """To the next power of two: right, and not what keep writes."""
    case = Case(tmp_path, "mxfp4")
    above = mxfp4(case.exact, mxfp4(case.exact)[f"{X}.weight_scale"] + 1)
    assert case.judged(above).ok and not case.judged(above, strict=True).ok


def test_gains(tmp_path: Path) -> None:
    """(IA)³, which changes each number by itself."""
    case = Case(tmp_path, "int4")
    gain = torch.rand(64, 1) + 0.5
    case.adapter = write_adapter(tmp_path / "ia3", {f"{X}.ia3_l": gain}, peft_type="IA3", r=None, lora_alpha=None)
    assert case.judged(case.quantise(case.before * gain.double())).ok
    assert case.fault(case.stored) == "not-applied"
    library.merge(case.base, [case.adapter], tmp_path / "out", quantise="keep")
    report = library.verify(tmp_path / "out", case.base, [case.adapter], strict=True)
    said = tuple(f"{path} is quantised: its numbers are compared, decoded" for path in (case.base, tmp_path / "out"))
    assert report.ok and report.notes == said
    library.merge(case.base, [case.adapter], tmp_path / "dense", dtype="bf16")
    report = library.verify(tmp_path / "dense", case.base, [case.adapter], strict=True)
    assert report.ok and any("stored as BF16" in note for note in report.notes)


def test_a_copy_of_the_base_is_not_a_merge(tmp_path: Path) -> None:
    case = Case(tmp_path, "fp8")
    assert case.fault(case.stored) == "not-applied"


Make = Callable[[Case], Tensors]


def other(case: Case, **parts: torch.Tensor) -> Tensors:
    """The merge, with other parts."""
    return case.quantise(case.exact) | {f"{X}.{name}": tensor for name, tensor in parts.items()}


def moved(case: Case, step: int) -> Tensors:
    scale = int4_scale(case.exact)
    return packed((int4_codes(case.exact, scale) + step).clamp(-8, 7), scale)


def swapped(case: Case) -> Tensors:
    codes = mxfp4(case.exact)[f"{X}.weight_packed"].int()
    return other(case, weight_packed=(codes // 16 + 16 * (codes % 16)).to(U8))


def transposed(case: Case) -> Tensors:
    return packed(int4_codes(case.exact, int4_scale(case.exact)).T, int4_scale(case.exact))


def twos_complement(case: Case) -> Tensors:
    codes = int4(case.exact)[f"{X}.weight_packed"]
    return other(case, weight_packed=codes ^ torch.tensor(-0x77777778, dtype=I32))


FAULTS: dict[str, tuple[str, Make, str]] = {
    "old scales": ("int4", lambda c: other(c, weight_scale=c.stored[f"{X}.weight_scale"]), "scales-of-others"),
    "old scales, FP8": ("fp8", lambda c: other(c, weight_scale_inv=c.stored[f"{X}.weight_scale_inv"]),
                        "scales-of-others"),
    "new scales, old codes": ("fp8", lambda c: fp8(c.exact) | {f"{X}.weight": c.stored[f"{X}.weight"]},
                              "scales-of-others"),
    "inverse scales": ("fp8", lambda c: other(c, weight_scale_inv=1 / fp8(c.exact)[f"{X}.weight_scale_inv"]),
                       "scales-inverted"),
    "transposed": ("int4", transposed, "codes-transposed"),
    "nibbles": ("mxfp4", swapped, "nibbles-swapped"),
    "zero point above": ("int4", lambda c: moved(c, 1), "zero-point"),
    "zero point below": ("int4", lambda c: moved(c, -1), "zero-point"),
    "two's complement": ("int4", twos_complement, "zero-point"),
    "cut off": ("fp8", lambda c: fp8(c.exact, fp8(c.exact)[f"{X}.weight_scale_inv"] / 3), "cut-off"),
    "not applied": ("int4", lambda c: int4(c.before), "not-applied"),
    "applied twice": ("int4", lambda c: int4(c.exact + c.change), "applied-twice"),
    "scales eight times as large": ("int4", lambda c: int4(c.exact, 8 * int4_scale(c.exact)), "scales-too-large"),
    "all codes 0": ("int4", lambda c: int4(c.exact, 1000 * int4_scale(c.exact)), "scales-too-large"),
    "scales of four exponents more": ("mxfp4", lambda c: mxfp4(c.exact, mxfp4(c.exact)[f"{X}.weight_scale"] + 4),
                                      "scales-too-large"),
    "negated": ("nf4", lambda c: nf4(c.before - c.change), "negated"),
    "cut towards 0": ("int4", lambda c: packed((c.exact / spread(int4_scale(c.exact).double(), 1, 32)).trunc()
                      .clamp(-8, 7), int4_scale(c.exact)), "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults(tmp_path: Path, name: str) -> None:
    kind, make, code = FAULTS[name]
    case = Case(tmp_path, kind)
    assert case.fault(make(case)) == code


def test_codes_by_chance(tmp_path: Path) -> None:
    case = Case(tmp_path, "int4")
    scale = int4_scale(case.exact)
    exact = case.exact / spread(scale.double(), 1, 32)
    drawn = (exact.floor() + (torch.rand(SHAPE) < exact - exact.floor())).clamp(-8, 7)
    assert case.fault(packed(drawn, scale)) == "not-nearest"


def test_what_nothing_changes_keeps_its_codes(tmp_path: Path) -> None:
    """A weight without a change, and blocks without one of a weight that has some."""
    case = Case(tmp_path, "fp8")
    merged = case.write("merged", fp8(case.before, case.stored[f"{X}.weight_scale_inv"] * 1.1))
    report = library.verify(merged, case.base, [write_adapter(tmp_path / "q", lora_factors(Q, (8, 6)))], weights=[0])
    assert {(one.name, one.status, one.diagnosis) for one in report.tensors if one.status != "exact"} == {
        (f"{X}.weight", "untouched_changed", "untouched-codes")
    }
    assert library.verify(case.write("same", case.stored), case.base, []).ok


def test_faults_of_the_whole(tmp_path: Path) -> None:
    """Scales that are left out, and configs that say what is not so."""
    case = Case(tmp_path, "fp8")
    merged = case.quantise(case.exact)
    scale = f"{X}.weight_scale_inv"
    lost = case.judged({name: tensor for name, tensor in merged.items() if name != scale})
    assert not lost.ok and any(problem.startswith("scales-missing") for problem in lost.problems)
    dense = case.judged(merged, quantised=False)
    assert not dense.ok and any(problem.startswith("config-says-dense") for problem in dense.problems)
    left = case.judged({f"{X}.weight": case.exact.to(BF16)})
    assert not left.ok and any("has a quantization_config" in problem for problem in left.problems)
    assert case.judged({f"{X}.weight": case.exact.to(BF16)}, quantised=False).ok


def test_other_tools_merge_what_the_library_decodes(tmp_path: Path) -> None:
    """Weights that are decoded to bf16, and a product in float32: of a dense merge into a quantised base."""
    case = Case(tmp_path, "nf4")
    before = case.before.to(BF16).float()
    merged = {f"{X}.weight": (before + case.change.float()).to(BF16)}
    assert case.judged(merged, quantised=False).ok


def test_what_is_calibrated_is_not_judged(tmp_path: Path) -> None:
    case = Case(tmp_path, "int4", dense=True)
    config = group(num_bits=4, type="int", symmetric=False, group_size=32)
    tensors = int4(case.exact) | {f"{X}.weight_zero_point": words(torch.full((2, 64), 8), 4).T.contiguous()}
    merged = write_checkpoint(tmp_path / "m", case.plain | tensors, config=CONFIG | {"quantization_config": config})
    with pytest.raises((UnsupportedError, InputError), match="not judged"):
        library.verify(merged, case.base, [case.adapter])


@pytest.mark.parametrize("name", ["fp8", "int4", "mxfp4"])
def test_what_keep_writes_is_exact(tmp_path: Path, name: str) -> None:
    case = Case(tmp_path, name, times=0.1)
    library.merge(case.base, [case.adapter], tmp_path / "out", quantise="keep")
    report = library.verify(tmp_path / "out", case.base, [case.adapter], strict=True)
    assert report.ok, [one for one in report.tensors if one.status != "exact"]
