"""What `inspect` says of adapters: its numbers against dense float64, its findings, and what fits a base."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FIXTURES, load, lora_factors, snapshot, write_adapter, write_checkpoint
from expert_models import CONFIGS as EXPERT_CONFIGS
from expert_models import E_, FUSED, H_, I_, R_, X, experts, fused_factors, store
from inspected import UP, Q, adapter_of
from layers import LAYERS, Attention, make_adapter, make_base, peft_merge
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import InputError
from adaptertool.reports.inspect import InspectedModule, InspectReport, Spectrum


def found(report: InspectReport) -> dict[str, InspectedModule]:
    return {module.name: module for module in adapter_of(report).modules}


def check(spectrum: Spectrum | None, delta: torch.Tensor, rank: int, tolerance: float = 1e-9) -> None:
    """Against the dense change: every number by its definition."""
    assert spectrum is not None
    values = np.linalg.svd(delta.double().numpy(), compute_uv=False)[:rank]
    assert spectrum.norm == pytest.approx(float(delta.double().norm()), rel=tolerance)
    assert np.allclose(spectrum.values, values / values[0], atol=1e-6)
    shares = values / values.sum()
    assert spectrum.entropy_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=tolerance)
    assert spectrum.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=tolerance)
    energies = (values**2).cumsum() / (values**2).sum()
    assert spectrum.rank_energy == int((energies < 0.99).sum()) + 1
    assert spectrum.rank_error == int((np.sqrt(1 - energies[:-1]) > 0.01).sum()) + 1


def test_trained_fixture() -> None:
    report = adaptertool.inspect(FIXTURES / "lora", FIXTURES / "base")
    factors, base = load(FIXTURES / "lora" / "adapter_model.safetensors"), load(FIXTURES / "base")
    modules = found(report)
    assert len(modules) == 28 and report.fits is True and report.refusal is None
    for name, module in modules.items():
        a, b = (factors[f"base_model.model.{name}.lora_{role}.weight"].double() for role in "AB")
        check(module.spectrum, 2 * b @ a, 8)
        assert (module.kind, module.rank, module.scale, module.dtypes) == ("lora", 8, 2.0, ("F32",))
        assert module.shape == (len(b), a.shape[1]) and module.parameters == a.numel() + b.numel()
        assert module.base_norm == pytest.approx(float(base[f"{name}.weight"].double().norm()), rel=1e-12)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_against_the_merge_of_peft(tmp_path: Path, layer: str) -> None:
    """The change that PEFT's own merge makes, as a matrix: embeddings, convolutions, layers stored turned round."""
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=[layer])
    module = found(adaptertool.inspect(adapter, base))[layer]
    before = load(base)[f"{layer}.weight"].double()
    delta = peft_merge(zoo, adapter)[f"{layer}.weight"] - before
    check(module.spectrum, delta.flatten(1), 3, tolerance=1e-6)
    assert module.base_norm == pytest.approx(float(before.norm()), rel=1e-12)
    assert math.prod(module.shape or ()) == before.numel()


def test_multihead_attention(tmp_path: Path) -> None:
    model = Attention()
    base = write_checkpoint(tmp_path / "base", {name: t.clone() for name, t in model.state_dict().items()})
    config = LoraConfig(r=3, target_modules=["attn"], init_lora_weights=False)
    get_peft_model(copy.deepcopy(model), config).save_pretrained(tmp_path / "a")
    adaptertool.merge(base, [tmp_path / "a"], tmp_path / "out")
    before, after = load(base), load(tmp_path / "out")
    modules = adapter_of(adaptertool.inspect(tmp_path / "a", base)).modules
    names = ["attn.in_proj_weight", "attn.out_proj.weight"]
    by_form = {module.shape: module for module in modules}
    assert len(by_form) == len(modules) == 2
    for name in names:
        delta, module = after[name].double() - before[name].double(), by_form[tuple(before[name].shape)]
        assert module.spectrum is not None and module.spectrum.norm == pytest.approx(float(delta.norm()), rel=1e-4)
        assert module.base_norm == pytest.approx(float(before[name].double().norm()), rel=1e-12)


@pytest.mark.parametrize("how", ["fused", "apart"])
def test_experts(tmp_path: Path, how: str) -> None:
    """Of the expert that needs most; norms are those of all of them."""
    base = write_checkpoint(tmp_path / "base", store(*experts(), how), config=EXPERT_CONFIGS[how])
    factors = fused_factors(on_first=False)
    adapter = write_adapter(tmp_path / "a", factors, r=R_, target_parameters=FUSED)
    modules = adapter_of(adaptertool.inspect(adapter, base)).modules
    whole = {tuple(tensor.shape): tensor for tensor in store(*experts(), "fused").values()}
    assert {module.family for module in modules} == {"experts"} and len(modules) == 2
    for module, key in zip(modules, (f"{X}.base_layer", X), strict=True):
        a, b = (factors[f"{key}.lora_{role}.weight"].double() for role in "AB")
        deltas = torch.einsum("ore,eri->eoi", b.reshape(len(b), R_, E_), a.reshape(E_, R_, -1)) * 4
        values = torch.linalg.svdvals(deltas)[:, :R_]
        assert (module.experts, module.rank, module.shape) == (E_, R_, (len(b), a.shape[1]))
        assert module.spectrum is not None
        assert module.spectrum.norm == pytest.approx(float(deltas.norm()), rel=1e-9)
        most = values[values.norm(dim=1).argmax()]
        assert module.spectrum.values == pytest.approx((most / most[0]).tolist(), abs=1e-6)
        assert module.spectrum.stable_rank == pytest.approx(float((values / values[:, :1]).square().sum(1).max()))
        stored = next(t for shape, t in whole.items() if shape[1:] == module.shape)
        assert module.base_norm is not None and stored.numel() == E_ * math.prod(module.shape)
    share = sum(one.adapted or 0 for one in adapter_of(adaptertool.inspect(adapter, base)).coverage)
    assert share == E_ * 3 * I_ * H_


def test_dora_says_what_its_spectra_are_of(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear"], use_dora=True)
    report = adaptertool.inspect(adapter, base)
    module = found(report)["linear"]
    factors = load(adapter / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.linear.lora_{role}.weight"].double() for role in "AB")
    check(module.spectrum, b @ a * (5 / 3), 3)
    assert module.kind == "dora" and module.parameters == 3 * (12 + 20) + 20
    assert any("scale·B·A alone" in note for note in report.notes)
    assert not any("DoRA" in note for note in adaptertool.inspect(adapter, base, spectra=False).notes)


# Effective rank, and what truncating to it loses.


def planted(folder: Path, *, rank: int, effective: int, noise: float) -> Path:
    """B·A of `rank` whose values are 1 for the first `effective` and `noise` for the rest, times a rotation."""
    factors: dict[str, torch.Tensor] = {}
    for module, (out, inner) in ((Q, (96, 80)), (UP, (128, 80))):
        left, right = (torch.linalg.qr(torch.randn(size, rank, dtype=torch.float64))[0] for size in (out, inner))
        values = torch.full((rank,), noise, dtype=torch.float64)
        values[:effective] = 1.0
        turn = torch.linalg.qr(torch.randn(rank, rank, dtype=torch.float64))[0]
        factors[f"{module}.lora_A.weight"] = (turn @ right.T).float()
        factors[f"{module}.lora_B.weight"] = (left * values @ turn.T).float()
    return write_adapter(folder, factors, r=rank, lora_alpha=rank)


def test_planted_rank_is_found_and_truncating_loses_what_is_said(tmp_path: Path) -> None:
    adapter = planted(tmp_path / "a", rank=64, effective=8, noise=1e-3)
    report = adaptertool.inspect(adapter)
    for module in adapter_of(report).modules:
        assert module.spectrum is not None
        assert module.spectrum.stable_rank == pytest.approx(8, rel=1e-4)
        assert 8 <= module.spectrum.entropy_rank < 8.6
        assert (module.spectrum.rank_energy, module.spectrum.rank_error) == (8, 8)
    [finding] = [line for line in report.findings if line.startswith("unused rank")]
    assert "of rank 64 the effective rank is 8" in finding
    assert finding.endswith(f"rank 8 keeps 99% of every Σσ²: adaptertool truncate {adapter} -o OUT --rank 8")
    done = adaptertool.truncate(adapter, tmp_path / "out", rank=8)
    assert all(layer.energy >= 0.99 and layer.error <= 0.01 for layer in done.layers)
    after = adaptertool.inspect(tmp_path / "out")
    assert not any(line.startswith("unused rank") for line in after.findings)
    for before, now in zip(adapter_of(report).modules, adapter_of(after).modules, strict=True):
        assert before.spectrum is not None and now.spectrum is not None and now.rank == 8
        assert now.spectrum.norm == pytest.approx(before.spectrum.norm, rel=1e-4)


@pytest.mark.parametrize("energy", [True, False])
def test_needed_ranks_are_those_of_truncate(tmp_path: Path, energy: bool) -> None:
    options: dict[str, Any] = {"energy": "0.99"} if energy else {"max_error": "0.01"}
    told = adaptertool.truncate(FIXTURES / "lora", tmp_path / "out", dry_run=True, **options)
    modules = found(adaptertool.inspect(FIXTURES / "lora"))
    for layer in told.layers:
        spectrum = modules[layer.layer].spectrum
        assert spectrum is not None and layer.rank == (spectrum.rank_energy if energy else spectrum.rank_error)


def test_one_layer_that_needs_all_of_its_rank(tmp_path: Path) -> None:
    """Then --rank would save nothing; each layer gets its own."""
    factors = load(planted(tmp_path / "a", rank=16, effective=2, noise=0.0) / "adapter_model.safetensors")
    mine = {key.removeprefix("base_model.model."): tensor for key, tensor in factors.items()}
    full = torch.linalg.qr(torch.randn(16, 16))[0].contiguous()
    other = full.T.contiguous()
    mine |= {"model.layers.0.mlp.down_proj.lora_A.weight": full, "model.layers.0.mlp.down_proj.lora_B.weight": other}
    report = adaptertool.inspect(write_adapter(tmp_path / "b", mine, r=16))
    assert report.findings[0].endswith("--energy 0.99")


def test_what_was_never_trained(tmp_path: Path) -> None:
    factors = lora_factors(UP, (12, 8)) | {f"{UP}.lora_B.weight": torch.zeros(12, 4)}
    report = adaptertool.inspect(write_adapter(tmp_path / "a", factors))
    assert report.findings == ("1 of 1 modules change nothing: their B·A is 0 (never trained?)",)
    spectrum = found(report)[UP].spectrum
    assert spectrum == Spectrum(0.0, 0.0, 0.0, 0, 0, (0.0,) * 4)


def test_sizes_that_no_float_holds(tmp_path: Path) -> None:
    factors = {key: torch.full_like(tensor, 3e38).double() * 1e200 for key, tensor in lora_factors(Q, (6, 5)).items()}
    module = found(adaptertool.inspect(write_adapter(tmp_path / "a", factors)))[Q]
    assert module.spectrum is not None and module.spectrum.norm is None
    assert module.spectrum.values == (1.0, 0.0, 0.0, 0.0) and module.spectrum.stable_rank == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_factors_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    factors = dict(lora_factors(UP, (12, 8))) | dict(lora_factors(Q, (8, 8)))
    factors[f"{UP}.lora_B.weight"][3, 1] = value
    report = adaptertool.inspect(write_adapter(tmp_path / "a", factors))
    modules = found(report)
    assert modules[UP].spectrum is None and modules[Q].spectrum is not None
    assert modules[UP].problem is not None and f"{UP}.lora_B.weight" in modules[UP].problem
    assert report.refusal == modules[UP].problem and report.refusal in report.findings


def test_threads_do_not_matter() -> None:
    reports = [adaptertool.inspect(FIXTURES / "lora", FIXTURES / "base", threads=count) for count in (1, 5)]
    assert reports[0].adapter == reports[1].adapter


# What a merge would say.


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"model.layers.0.self_attn.q_proj.weight": torch.randn(9, 9)})
    for adapter in (lora_factors(Q, (8, 6)), lora_factors("model.layers.7.mlp.up_proj", (9, 9))):
        path = write_adapter(tmp_path / "a", adapter)
        report = adaptertool.inspect(path, base)
        with pytest.raises(InputError) as refused:
            adaptertool.prepare_merge(base, [path])
        assert report.fits is False and report.refusal == str(refused.value)
        assert all(module.spectrum for module in adapter_of(report).modules)
        assert all(one.adapted is None for one in adapter_of(report).coverage if one.modules)


def test_renamings_are_those_of_merge(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"language.q_proj.weight": torch.randn(8, 6)})
    adapter = write_adapter(tmp_path / "a", lora_factors("text.q_proj", (8, 6)))
    assert adaptertool.inspect(adapter, base).fits is False
    report = adaptertool.inspect(adapter, base, renames=["^text=>language"])
    assert report.fits is True and adapter_of(report).modules[0].base_norm is not None


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"layer_replication": [[0, 1]]}, "replicated"),
    ],
)
def test_refused_adapters_are_described(tmp_path: Path, config: dict[str, Any], word: str) -> None:
    path = write_adapter(tmp_path / "a", lora_factors(UP, (12, 8)), **config)
    report = adaptertool.inspect(path)
    assert report.refusal is not None and word in report.refusal and report.fits is None
    assert found(report)[UP].spectrum is not None
    assert (
        adaptertool.inspect(path, write_checkpoint(tmp_path / "b", {f"{UP}.weight": torch.ones(12, 8)})).fits is False
    )


def test_no_command_is_advised_for_what_it_refuses(tmp_path: Path) -> None:
    factors = load(planted(tmp_path / "a", rank=16, effective=2, noise=0.0) / "adapter_model.safetensors")
    mine = {key.removeprefix("base_model.model."): tensor for key, tensor in factors.items()}
    report = adaptertool.inspect(write_adapter(tmp_path / "b", mine, r=16, init_lora_weights="pissa"))
    [finding] = report.findings
    assert finding.startswith("unused rank") and "adaptertool truncate" not in finding


def test_kinds_that_are_not_handled(tmp_path: Path) -> None:
    own = {f"{UP}.lily_{name}.weight": torch.randn(*size) for name, size in {"A": (4, 12), "B": (8, 4)}.items()}
    base = write_checkpoint(tmp_path / "base", {f"{UP}.weight": torch.randn(12, 8)})
    report = adaptertool.inspect(write_adapter(tmp_path / "a", own, peft_type="LILY"), base)
    module = found(report)[UP]
    assert (module.kind, module.family, module.rank, module.parameters) == ("lily", "MLP", 4, 80)
    assert module.spectrum is None and report.refusal is not None and "LILY" in report.refusal and not report.rules
    assert [(one.family, one.adapted, one.base) for one in adapter_of(report).coverage] == [("MLP", None, 96)]
    prompt = write_adapter(tmp_path / "p", {}, peft_type="PROMPT_TUNING", r=None)
    save_file({"prompt_embeddings": torch.zeros(5, 8)}, prompt / "adapter_model.safetensors")
    [module] = adapter_of(adaptertool.inspect(prompt)).modules
    assert (module.name, module.kind, module.family) == ("prompt_embeddings", "prompt_tuning", "other")


def test_saved_tensors_biases_and_rows(tmp_path: Path) -> None:
    tensors = {
        **lora_factors(Q, (8, 6)), "model.norm.weight": torch.ones(6), f"{UP}.base_layer.bias": torch.ones(8),
        "model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 6),
    }  # fmt: skip
    config = {"modules_to_save": ["norm"], "bias": "all", "trainable_token_indices": {"embed_tokens": [1, 4]}}
    facts = adapter_of(adaptertool.inspect(write_adapter(tmp_path / "a", tensors, **config)))
    assert dict(facts.kinds) == {"lora": 1, "full": 2, "rows": 1}
    assert {one.family: one.adapted for one in facts.coverage} == {
        "attention": 48,
        "MLP": 8,
        "embeddings": 12,
        "norms": 6,
    }


def test_nothing_is_written(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (8, 6)))
    before = snapshot(tmp_path)
    adaptertool.inspect(adapter)
    adaptertool.inspect(FIXTURES / "base")
    assert snapshot(tmp_path) == before
