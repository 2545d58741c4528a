"""drift against plain torch: float64 formulas for the weights, PEFT's own forward for what layers compute."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FIXTURES, lora_factors, write_adapter, write_checkpoint
from conftest import adaptertool as command
from expert_models import CONFIGS, experts, store
from expert_models import X as EXPERTS
from layers import make_adapter, make_base, peft_merge
from oracle import half_ulp_excess
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import adaptertool
from adaptertool.errors import MismatchError, NonFiniteError, UsageError
from adaptertool.fidelity import measure as measure_module
from adaptertool.fidelity import outputs as outputs_module
from adaptertool.fidelity.inference import held
from adaptertool.reports.drift import DriftReport, ModuleDrift

Q = "model.layers.0.self_attn.q_proj"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
SHAPE = (48, 64)


def module(report: DriftReport, name: str) -> ModuleDrift:
    return next(found for found in report.modules if found.name == name)


def distance(found: ModuleDrift, one: str, other: str = "exact") -> Any:
    return next(pair for pair in found.outputs if (pair.path, pair.against) == (one, other))


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.double(), other.double()
    return float((one - other).norm() / other.norm())


def written(folder: Path, name: str = "lora", **config: Any) -> tuple[Path, Path]:
    base = write_checkpoint(folder / "base", {f"{Q}.weight": (torch.randn(SHAPE) / 8).to(torch.bfloat16)})
    return base, write_adapter(folder / name, lora_factors(Q, SHAPE), **config)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 0.01, 1e-4])
def test_weights_against_float64(tmp_path: Path, dtype: torch.dtype, size: float) -> None:
    weight, factors = (torch.randn(SHAPE) / 8).to(dtype), lora_factors(Q, SHAPE)
    factors[f"{Q}.lora_B.weight"] *= size
    base = write_checkpoint(tmp_path / "base", {f"{Q}.weight": weight})
    found = adaptertool.drift(base, [write_adapter(tmp_path / "a", factors)]).modules[0]
    before = weight.double()
    delta = 2.0 * factors[f"{Q}.lora_B.weight"].double() @ factors[f"{Q}.lora_A.weight"].double()
    stored = (before + delta).to(torch.float32).to(dtype).double()  # rounded twice: hardly ever another number
    assert found.weight.rel_error == pytest.approx(relative(stored, before + delta), rel=1e-6)
    assert found.weight.survival == pytest.approx(float((stored - before).mul(delta).sum() / delta.square().sum()))
    assert found.weight.noise == pytest.approx(float((stored - before - delta).norm() / delta.norm()), rel=1e-6)
    assert found.weight.delta_size == pytest.approx(float(delta.norm() / before.norm()))
    assert found.weight.unchanged == pytest.approx(float((stored == before).double().mean()))
    excess = float(half_ulp_excess(stored.to(dtype), before + delta).max())
    assert found.weight.max_ulp == pytest.approx(excess / 2, rel=1e-6) and found.weight.max_ulp <= 0.5


def test_fixtures_against_float64() -> None:
    report = adaptertool.drift(FIXTURES / "base", [FIXTURES / "lora"])
    base: dict[str, torch.Tensor] = {}
    for file in sorted((FIXTURES / "base").glob("*.safetensors")):
        base |= load_file(file)
    factors = load_file(FIXTURES / "lora" / "adapter_model.safetensors")
    error = norm = along = length = 0.0
    for key, a in factors.items():
        if not key.endswith("lora_A.weight"):
            continue
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
        before, b = base[name].double(), factors[key.replace("lora_A", "lora_B")].double()
        delta = 2.0 * b @ a.double()
        stored = (before + delta).float().to(torch.bfloat16).double()
        error, norm = error + (stored - before - delta).square().sum(), norm + (before + delta).square().sum()
        along, length = along + ((stored - before) * delta).sum(), length + delta.square().sum()
        found = module(report, name)
        assert found.weight.rel_error == pytest.approx(relative(stored, before + delta), rel=1e-6)
        x = torch.from_numpy(held(gaussian(name, 96 if "down" not in name else 256), "BF16")).to(torch.bfloat16)
        merged = relative(x @ stored.to(torch.bfloat16).T, x.double() @ (before + delta).T)
        assert distance(found, "merged").rel_error == pytest.approx(merged, rel=0.02)
    assert report.survival == pytest.approx(float(along / length)) and report.verdict == "expected" and report.ok
    assert report.rel_error == pytest.approx(float((error / norm).sqrt()))
    assert len(report.modules) == len(factors) // 2


def gaussian(name: str, width: int, rows: int = 16) -> Any:
    """The probe, by its recipe."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def test_an_adapter_that_changes_nothing(tmp_path: Path) -> None:
    factors = lora_factors(Q, SHAPE)
    factors[f"{Q}.lora_B.weight"].zero_()
    base, _ = written(tmp_path)
    report = adaptertool.drift(base, [write_adapter(tmp_path / "zero", factors)])
    weight = report.modules[0].weight
    assert (weight.survival, weight.noise, weight.unchanged, weight.rel_error) == (None, None, None, 0.0)
    assert report.survival is None and report.ok
    json.dumps(report.modules[0].weight.rel_error, allow_nan=False)


def test_small_updates_are_lost_and_it_is_said(tmp_path: Path) -> None:
    base, _ = written(tmp_path)
    factors = lora_factors(Q, SHAPE)
    factors[f"{Q}.lora_B.weight"] *= 1e-4
    report = adaptertool.drift(base, [write_adapter(tmp_path / "small", factors)])
    assert report.survival is not None and report.survival < 0.9 and report.unchanged is not None
    assert report.unchanged > 0.9 and "unmerged" in report.advice[0] and report.verdict == "expected"


# ---------------------------------------------------------------- outputs


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 48, bias=False)
        self.turned = Conv1D(56, 40)
        self.embedding = nn.Embedding(120, 24)


def peft_layers(folder: Path, dtype: torch.dtype, adapters: Sequence[bool]) -> tuple[Any, Path, list[Path]]:
    """A model with one adapter for each of `adapters` (whether it is DoRA), all active, in one dtype; and the files."""
    layers = Layers()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 8)
        layers.turned.bias.zero_()
    layers = layers.to(dtype)
    weights = {name: tensor.contiguous() for name, tensor in layers.state_dict().items()}
    base = write_checkpoint(folder / "base", weights, config={"tie_word_embeddings": False})
    paths = []
    for number, dora in enumerate(adapters):
        config = LoraConfig(r=4 + number, lora_alpha=6, target_modules=["linear", "turned", "embedding"], use_dora=dora)
        tuned: Any = get_peft_model(Layers().to(dtype), config)
        tuned.base_model.model.load_state_dict(weights, strict=False)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad and "magnitude" not in name:
                    parameter.copy_(torch.randn(parameter.shape) / 8)
                elif parameter.requires_grad:
                    parameter.mul_(1 + torch.rand(parameter.shape) / 4)
        tuned.save_pretrained(folder / str(number), save_embedding_layers=False)
        paths.append(folder / str(number))
    model: Any = PeftModel.from_pretrained(layers, paths[0], adapter_name="0", autocast_adapter_dtype=False)
    for number, path in enumerate(paths[1:], 1):
        model.load_adapter(path, adapter_name=str(number), autocast_adapter_dtype=False)
    model.base_model.set_adapter([str(number) for number in range(len(paths))])
    return model.to(dtype).eval(), base, paths


INPUTS = {"linear": 64, "turned": 40}


@pytest.mark.long("adapters")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adapters", [[False], [True], [False, False], [True, False], [False, True]], ids=str)
def test_outputs_against_peft(tmp_path: Path, dtype: torch.dtype, adapters: list[bool]) -> None:
    """The unmerged path is PEFT's forward of the same layers in the same dtype, and as far from the exact value."""
    model, base, paths = peft_layers(tmp_path, dtype, adapters)
    x = {name: torch.randn(32, width).to(dtype) for name, width in INPUTS.items()}
    save_file(x, tmp_path / "x.safetensors")
    # Mixed, as active adapters are in PEFT
    report = adaptertool.drift(base, paths, activations=tmp_path / "x.safetensors", compose="mixed")
    x["embedding"] = torch.arange(120)
    adaptertool.merge(base, paths, tmp_path / "out", compose="mixed")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    double = PeftModel.from_pretrained(layers_of(base), paths[0], adapter_name="0")
    for number, path in enumerate(paths[1:], 1):
        double.load_adapter(path, adapter_name=str(number))
    double = double.double().merge_and_unload(adapter_names=[str(number) for number in range(len(paths))])
    for name, inputs in x.items():
        found = module(report, f"{name}.weight")
        exact = getattr(double, name)(inputs.double() if name in INPUTS else inputs)
        weight = merged[f"{name}.weight"]
        stored = inputs @ (weight if name == "turned" else weight.T) if name in INPUTS else weight
        with torch.no_grad():
            unmerged = getattr(model.base_model.model, name)(inputs)
        # Sums in float32 go in another order; torch's norms, each for a whole row, are sums too
        near = {"rel": 0.04}
        if any(adapters):
            near = {"rel": 0.5 if dtype == torch.float32 else 0.15}
        elif dtype == torch.float32:
            near = {"rel": 0.15}
        assert distance(found, "merged").rel_error == pytest.approx(relative(stored, exact), **near)
        assert distance(found, "unmerged").rel_error == pytest.approx(relative(unmerged, exact), **near)
        assert distance(found, "merged", "unmerged").rel_error == pytest.approx(relative(stored, unmerged), **near)
        if dtype != torch.float32:
            assert distance(found, "unmerged").max_abs == pytest.approx(float((unmerged - exact).abs().max()), rel=0.5)
        assert found.verdict == "expected" and found.inputs == len(inputs)
        assert relative(unmerged, exact) < 2 * distance(found, "unmerged").explained


def layers_of(base: Path) -> Any:
    layers = Layers()
    layers.load_state_dict({name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()})
    return layers.double()


def test_paths_of_two(tmp_path: Path) -> None:
    """Merged one after the other, and the second beside the merged first, by torch in bf16."""
    base, first = written(tmp_path)
    second = write_adapter(tmp_path / "second", lora_factors(Q, SHAPE, rank=3), r=3, lora_alpha=3)
    x = torch.randn(40, 64).to(torch.bfloat16)
    save_file({Q: x}, tmp_path / "x.safetensors")
    found = adaptertool.drift(base, [first, second], activations=tmp_path / "x.safetensors").modules[0]
    w = load_file(base / "model.safetensors")[f"{Q}.weight"].double()
    pairs = [list(load_file(path / "adapter_model.safetensors").values()) for path in (first, second)]
    (a, b), (a2, b2) = [[t.double() for t in pair] for pair in pairs]
    one = (w + 2 * b @ a).float().bfloat16()
    both = (one.double() + b2 @ a2).float().bfloat16()
    exact = x.double() @ (w + 2 * b @ a + b2 @ a2).T
    beside = x @ one.T + (x @ a2.bfloat16().T) @ b2.bfloat16().T
    assert distance(found, "stepwise").rel_error == pytest.approx(relative(x @ both.T, exact), rel=0.02)
    assert distance(found, "stacked").rel_error == pytest.approx(relative(beside, exact), rel=0.02)
    assert distance(found, "stacked", "stepwise").rel_error == pytest.approx(relative(beside, x @ both.T), rel=0.03)
    few = adaptertool.drift(base, [first, second], paths=["stepwise", "merged"]).modules[0]
    assert [(pair.path, pair.against) for pair in few.outputs] == [
        ("merged", "exact"), ("stepwise", "exact"), ("merged", "stepwise"),
    ]  # fmt: skip


@pytest.mark.parametrize(("elements", "outputs"), [(64, 1 << 18), (64, 300), (200, 1), (1 << 20, 1 << 18)])
def test_blocks_and_threads_play_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: int, outputs: int
) -> None:
    _, base, paths = peft_layers(tmp_path, torch.bfloat16, [True])
    before = adaptertool.drift(base, paths, threads=3)
    monkeypatch.setattr(measure_module, "PART", elements)
    monkeypatch.setattr(outputs_module, "_TOGETHER", outputs)
    after = adaptertool.drift(base, paths, threads=1)
    for one, other in zip(before.modules, after.modules, strict=True):
        assert one.name == other.name and one.weight.rel_error == pytest.approx(other.weight.rel_error, rel=1e-9)
        for mine, theirs in zip(one.outputs, other.outputs, strict=True):
            assert mine.rel_error == pytest.approx(theirs.rel_error, rel=1e-3)
            assert mine.explained == pytest.approx(theirs.explained, rel=1e-3)
    again = adaptertool.drift(base, paths, threads=2)
    assert again.modules == after.modules and again.paths == after.paths


def test_saved_modules_have_no_outputs() -> None:
    report = adaptertool.drift(FIXTURES / "base", [FIXTURES / "rslora"])
    saved = module(report, "lm_head.weight")
    assert saved.outputs == () and saved.no_outputs and "replaced" in saved.no_outputs
    assert saved.drift == saved.weight.rel_error and saved.verdict == "expected"


# ---------------------------------------------------------------- options, and what is refused


def test_activations_that_do_not_fit(tmp_path: Path) -> None:
    base, adapter = written(tmp_path)
    x = tmp_path / "x.safetensors"
    save_file({"elsewhere": torch.randn(2, 64)}, x)
    with pytest.raises(MismatchError, match="holds no inputs of a module"):
        adaptertool.drift(base, [adapter], activations=x)
    save_file({Q: torch.randn(2, 63)}, x)
    with pytest.raises(MismatchError, match="takes inputs of 64"):
        adaptertool.drift(base, [adapter], activations=x)
    save_file({Q: torch.full((2, 64), math.nan)}, x)
    with pytest.raises(NonFiniteError, match="NaN"):
        adaptertool.drift(base, [adapter], activations=x)
    save_file({Q: torch.randn(2, 3, 64), "other": torch.ones(3)}, x)
    report = adaptertool.drift(base, [adapter], activations=x)
    assert report.modules[0].inputs == 6 and any("not used" in note for note in report.notes)


def test_outputs_beyond_the_range_are_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{Q}.weight": torch.full(SHAPE, 1000.0, dtype=torch.float16)})
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, SHAPE))
    save_file({Q: torch.full((1, 64), 10.0)}, tmp_path / "x.safetensors")
    with pytest.raises(NonFiniteError, match="beyond the range of F16"):
        adaptertool.drift(base, [adapter], activations=tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "options", [{"probe": 0}, {"probe": 5000}, {"paths": ["sideways"]}, {"fail_above": -1.0}, {"fail_above": math.nan}]
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        adaptertool.drift(*[[path] if number else path for number, path in enumerate(written(tmp_path))], **options)


def test_command_line(tmp_path: Path) -> None:
    base, adapter = written(tmp_path)
    done = command("drift", base, adapter, "--json", "--time")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["schema"] == "drift/1" and report["verdict"] == "expected"
    assert {"survival", "noise", "advice", "paths", "modules", "cost", "ok", "drift"} <= report.keys()
    assert [cost["batch"] for cost in report["cost"]] == [1, 64]
    text = command("drift", base, adapter, "-v")
    assert text.returncode == 0 and Q in text.stdout and "expected" in text.stdout
    limit = command("drift", base, adapter, "--fail-above", "1e-9")
    assert limit.returncode == 1 and "is over 1e-09" in limit.stdout
    assert command("drift", base, adapter, "-q").stdout == ""
    assert command("drift", base, adapter, "--paths", "nowhere").returncode == 2
    assert command("drift", base, adapter, "--merged", tmp_path / "none").returncode == 3


@pytest.mark.parametrize("how", ["apart", "fused", "transposed", "interleaved"])
@pytest.mark.parametrize("elements", [500, 1 << 20])
def test_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, elements: int) -> None:
    """However they are stored: each expert is a layer, here with an adapter for each of its projections."""
    monkeypatch.setattr(measure_module, "PART", elements)
    count, inner, width = 3, 32, 48
    weights = [(part / 8).to(torch.bfloat16) for part in experts((count, inner, width))]
    factors: dict[str, torch.Tensor] = {}
    for e in range(count):
        for name, (part, shape) in {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}.items():
            factors |= lora_factors(f"{EXPERTS}.{e}.{name}_proj", (part, shape))
    base = write_checkpoint(tmp_path / "base", store(*weights, how), config=CONFIGS[how])
    adapter = write_adapter(tmp_path / "a", factors)
    x = torch.randn(40, width).to(torch.bfloat16)
    names = (
        ["gate_up_proj"] if how != "apart" else [f"{e}.{part}_proj" for e in range(count) for part in ("gate", "up")]
    )
    save_file({f"{EXPERTS}.{name}": x.clone() for name in names}, tmp_path / "x.safetensors")
    report = adaptertool.drift(base, [adapter], activations=tmp_path / "x.safetensors")
    exact, beside = [], []
    for e in range(count):
        for name, weight in (("gate", weights[0][e]), ("up", weights[1][e])):
            a, b = (factors[f"{EXPERTS}.{e}.{name}_proj.lora_{side}.weight"] for side in "AB")
            exact.append(x.double() @ (weight.double() + 2 * b.double() @ a.double()).T)
            beside.append(x @ weight.T + 2 * ((x @ a.bfloat16().T) @ b.bfloat16().T))
    measured = [found for found in report.modules if found.outputs]
    error = sum(distance(found, "unmerged").rel_error ** 2 for found in measured) / len(measured)
    assert math.sqrt(error) == pytest.approx(relative(torch.cat(beside), torch.cat(exact)), rel=0.05)
    assert report.verdict == "expected" and {found.rank for found in report.modules} == {4}
    down = next(found for found in report.modules if "down" in found.name)
    assert down.outputs == () and down.no_outputs == "no inputs were recorded"


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
@pytest.mark.parametrize("dora", [False, True])
def test_convolutions_are_their_matrices(tmp_path: Path, layer: str, dora: bool) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=[layer], use_dora=dora)
    weight = getattr(zoo, layer).weight.detach().flatten(1)
    x = torch.randn(200, weight.shape[1]).to(torch.bfloat16)
    save_file({layer: x}, tmp_path / "x.safetensors")
    found = adaptertool.drift(base, [adapter], activations=tmp_path / "x.safetensors").modules[0]
    adaptertool.merge(base, [adapter], tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")[f"{layer}.weight"].flatten(1)
    exact = peft_merge(zoo, adapter)[f"{layer}.weight"].flatten(1)
    expected = relative(x @ stored.T, x.double() @ exact.T)
    assert distance(found, "merged").rel_error == pytest.approx(expected, rel=0.02)
    assert distance(found, "unmerged").expected and found.verdict == "expected"
