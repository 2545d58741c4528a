"""Fused experts and projections: adapters of PEFT's on tiny models, and each way of storing them against the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, lora_factors, same_bits, write_adapter, write_checkpoint
from expert_models import (
    CONFIGS,
    E_,
    FUSED,
    H_,
    I_,
    MODELS,
    R_,
    X,
    by_formula,
    experts,
    fused_factors,
    merged_experts,
    one_by_one,
    store,
    train,
)
from models import MOE, TEXT, build, compare
from oracle import half_ulp_excess
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.codecs import tensors as tensors_module
from adaptertool.errors import AdapterToolError, InputError, MismatchError, UnsupportedError
from adaptertool.render.run import plan_text


@pytest.mark.long("name")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_target_parameters(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    fields, parameters = MODELS[name]
    model = build(name, fields).to(dtype)
    model.save_pretrained(tmp_path / "base", max_shard_size="60KB")
    patterns = {"rank_pattern": {".*experts.down_proj": 3}, "alpha_pattern": {".*experts.gate_up_proj": 5}}
    adapter = train(model, tmp_path / "adapter", target_parameters=parameters, use_rslora=True, **patterns)
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    layers = 1 if name == "JambaForCausalLM" else 2
    assert compare(model, tmp_path / "base", adapter, tmp_path / "out", dtype) == layers * len(parameters)


@pytest.mark.parametrize("how", ["fused", "transposed", "interleaved"])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_of_single_experts_onto_every_way_of_storing_them(tmp_path: Path, how: str, dora: bool) -> None:
    """The same bits as on experts that are stored one by one, at the place where they are stored."""
    weights, factors = experts(), one_by_one()
    if dora:
        magnitudes = {key.replace("lora_A.weight", "lora_magnitude_vector"): key for key in factors if "lora_A" in key}
        for name, key in magnitudes.items():
            factors[name] = torch.rand(len(factors[key.replace("lora_A", "lora_B")])) + 1
    adapter = write_adapter(tmp_path / "adapter", factors, r=R_, use_dora=dora)
    single = merged_experts(tmp_path, "apart", weights, adapter)
    parts = [torch.stack([single[f"{X}.{e}.{part}_proj.weight"] for e in range(E_)]) for part in ("gate", "up", "down")]
    assert not any(same_bits(part, weight) for part, weight in zip(parts, weights, strict=True))
    expected, found = store(*parts, how), merged_experts(tmp_path, how, weights, adapter)
    for name, tensor in found.items():
        if dora and how != "fused":  # norms of columns are summed in another order
            assert torch.allclose(tensor, expected[name], rtol=3e-7, atol=0)
        else:
            assert same_bits(tensor, expected[name])


def test_one_expert_alone_changes_no_other(tmp_path: Path) -> None:
    weights = experts()
    adapter = write_adapter(tmp_path / "adapter", lora_factors(f"{X}.1.up_proj", (I_, H_), R_), r=R_)
    for how in ("fused", "transposed", "interleaved"):
        found, before = merged_experts(tmp_path, how, weights, adapter), store(*weights, how)
        assert same_bits(found[f"{X}.down_proj"], before[f"{X}.down_proj"])
        changed = (found[f"{X}.gate_up_proj"] != before[f"{X}.gate_up_proj"]).nonzero()
        assert set(changed[:, 0].tolist()) == {1}
        places = set(changed[:, 1 if how == "fused" else 2].tolist())
        assert places == set(range(1, 2 * I_, 2) if how == "interleaved" else range(I_, 2 * I_))


@pytest.mark.parametrize("on_first", [False, True])
@pytest.mark.parametrize("how", ["apart", "fused", "unknown"])
def test_both_orientations_of_the_factors(tmp_path: Path, how: str, on_first: bool) -> None:
    """PEFT up to 0.19.0 had lora_A on the first dimension. Shapes tell, also without a version."""
    weights, factors = experts(), fused_factors(on_first)
    adapter = write_adapter(tmp_path / "adapter", factors, r=R_, target_parameters=FUSED)
    found = merged_experts(tmp_path, how, weights, adapter)
    both = by_formula(torch.cat(weights[:2], dim=1), factors, f"{X}.base_layer", on_first)
    down = by_formula(weights[2], factors, X, on_first)
    for name, exact in store(both[:, :I_], both[:, I_:], down, how).items():
        assert half_ulp_excess(found[name], exact).max() <= 1 + 1e-6


@pytest.mark.parametrize("version", ["0.18.1", "0.19.0", "0.19.1", "0.21.2.dev0", None])
@pytest.mark.parametrize("how", ["apart", "fused"])
def test_square_experts_go_by_the_version_of_peft(tmp_path: Path, how: str, version: str | None) -> None:
    sizes = (E_, H_, H_)
    weights, factors = (
        experts(sizes),
        {key: f for key, f in fused_factors(False, sizes).items() if "base_layer" not in key},
    )
    adapter = write_adapter(tmp_path / "adapter", factors, r=R_, target_parameters=FUSED[1:], peft_version=version)
    if version is None:
        with pytest.raises(UnsupportedError, match=r"square \(6×6\).*peft_version"):
            merged_experts(tmp_path, how, weights, adapter)
        return
    found = merged_experts(tmp_path, how, weights, adapter)
    down = by_formula(weights[2], factors, X, version in ("0.18.1", "0.19.0"))
    for name, exact in store(weights[0].double(), weights[1].double(), down, how).items():
        assert half_ulp_excess(found[name], exact).max() <= 1 + 1e-6


@pytest.mark.parametrize("on_first", [False, True])
def test_square_experts_go_by_the_other_parameter_before_the_version(tmp_path: Path, on_first: bool) -> None:
    sizes = (E_, H_, H_)
    weights, factors = experts(sizes), fused_factors(on_first, sizes)
    adapter = write_adapter(tmp_path / "adapter", factors, r=R_, target_parameters=FUSED, peft_version="0.19.1")
    found = merged_experts(tmp_path, "fused", weights, adapter)
    exact = by_formula(weights[2], factors, X, on_first)
    assert half_ulp_excess(found[f"{X}.down_proj"], exact).max() <= 1 + 1e-6


def test_square_experts_of_a_transposing_family_are_refused_unless_something_tells(tmp_path: Path) -> None:
    """There the version of transformers counts too, which no config holds."""
    sizes = (E_, H_, H_)
    factors = {key: f for key, f in fused_factors(False, sizes).items() if "base_layer" not in key}
    adapter = write_adapter(tmp_path / "a", factors, r=R_, target_parameters=FUSED[1:], peft_version="0.21.2")
    with pytest.raises(UnsupportedError, match="square"):
        merged_experts(tmp_path, "interleaved", experts(sizes), adapter)


def damaged(change: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], type[AdapterToolError], str]:
    factors, fields = fused_factors(False), {"r": R_, "target_parameters": FUSED}
    if change == "rank":
        return factors, fields | {"r": 1}, MismatchError, r"has 3 experts, so for rank 1 .* must have 3 rows"
    if change == "rank that divides nothing":
        return factors, fields | {"r": 4}, MismatchError, "gives it rank 4"
    if change == "one set lost":
        del factors[f"{X}.lora_A.weight"], factors[f"{X}.lora_B.weight"]
        return factors, fields, InputError, "factors for 1 parameters of .* names 2"
    if change == "all lost":
        return lora_factors("model.layers.0.q", (H_, H_), R_), fields, InputError, "none of them; were they lost"
    if change == "unknown order":
        return factors, fields | {"target_parameters": ["experts.w13", "experts.w2"]}, UnsupportedError, "w13, w2 of"
    if change == "other model":
        factors[f"{X}.base_layer.lora_A.weight"] = torch.randn(E_ * R_, H_ + 1)
        return factors, fields, MismatchError, r"experts of 8×6, but its factors .* are for 8×7"
    if change == "magnitude":
        factors[f"{X}.lora_magnitude_vector"] = torch.randn(H_)
        return factors, fields | {"use_dora": True}, InputError, "has lora_A, lora_B, lora_magnitude_vector"
    assert change == "no name list"
    return factors, fields | {"target_parameters": "experts.down_proj"}, InputError, "must be a list of names"


@pytest.mark.parametrize("how", ["apart", "fused"])
@pytest.mark.parametrize(
    "change",
    ["rank", "rank that divides nothing", "one set lost", "all lost", "unknown order", "other model", "magnitude",
     "no name list"],
)  # fmt: skip
def test_damaged_adapters_of_experts_are_refused(tmp_path: Path, how: str, change: str) -> None:
    factors, fields, kind, message = damaged(change)
    weights = store(*experts(), how) | {"model.layers.0.q.weight": torch.randn(H_, H_)}
    base = write_checkpoint(tmp_path / "base", weights, config=CONFIGS[how])
    with pytest.raises(kind, match=message):
        adaptertool.merge(base, [write_adapter(tmp_path / "a", factors, **fields)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_experts_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", fused_factors(False), r=R_, target_parameters=FUSED)
    for name in (f"{X}.1.up_proj.weight", f"{X}.0.gate_proj.weight"):
        weights = store(*experts(), "apart")
        del weights[name]
        base = write_checkpoint(tmp_path / name, weights, config=CONFIGS["apart"])
        with pytest.raises(MismatchError, match="not all there"):
            adaptertool.merge(base, [adapter], tmp_path / "out")


def test_the_same_expert_twice_is_refused(tmp_path: Path) -> None:
    """Once by the fused tensor, once by itself."""
    tensors = {**fused_factors(False), **lora_factors(f"{X}.1.up_proj", (I_, H_), R_)}
    adapter = write_adapter(tmp_path / "a", tensors, r=R_, target_parameters=FUSED)
    for how in ("apart", "fused"):
        with pytest.raises(MismatchError, match="both change"):
            merged_experts(tmp_path, how, experts(), adapter)


@pytest.mark.parametrize("how", ["fused", "transposed"])
def test_experts_are_never_guessed(tmp_path: Path, how: str) -> None:
    """An unknown architecture may have up before gate; an expert may not be there; a shape may not fit."""
    weights = store(*experts(), how)
    base = write_checkpoint(tmp_path / "base", weights, config=CONFIGS["unknown"])
    adapter = write_adapter(tmp_path / "a", lora_factors(f"{X}.1.up_proj", (I_, H_), R_), r=R_)
    with pytest.raises(UnsupportedError, match="how gate and up lie in there is not known"):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    known = write_checkpoint(tmp_path / "known", weights, config=CONFIGS[how])
    for module, shape, message in (("7.up", (I_, H_), "holds no expert 7"), ("1.up", (I_ + 1, H_), "does not fit")):
        adapter = write_adapter(tmp_path / module, lora_factors(f"{X}.{module}_proj", shape, R_), r=R_)
        with pytest.raises(MismatchError, match=message):
            adaptertool.merge(known, [adapter], tmp_path / "out")


@pytest.mark.parametrize("how", ["apart", "fused"])
def test_saved_experts(tmp_path: Path, how: str) -> None:
    """modules_to_save: the fused tensors whole, byte for byte where they are stored; and a fraction of the way."""
    weights, tuned = experts(), experts()
    adapter = write_adapter(tmp_path / "a", store(*tuned, "fused"), modules_to_save=["experts"])
    found = merged_experts(tmp_path, how, weights, adapter)
    assert found.keys() == store(*tuned, how).keys()
    assert all(same_bits(found[name], tensor) for name, tensor in store(*tuned, how).items())
    adaptertool.wise(tmp_path / f"base-{how}", adapter, tmp_path / "half", 0.5)
    middle = [(a.double() + b.double()) / 2 for a, b in zip(weights, tuned, strict=True)]
    for name, exact in store(*middle, how).items():
        assert half_ulp_excess(load(tmp_path / "half")[name], exact).max() <= 1 + 1e-6


def test_many_blocks_and_threads_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = experts()
    adapter = write_adapter(tmp_path / "a", fused_factors(False), r=R_, target_parameters=FUSED)
    whole = merged_experts(tmp_path, "fused", weights, adapter)
    monkeypatch.setattr("adaptertool.arithmetic.tiling.BLOCK_ELEMENTS", 2 * H_ + 1)
    monkeypatch.setattr("adaptertool.arithmetic.chain._PASS_ELEMENTS", 5)
    for name, tensor in merged_experts(tmp_path / "small", "fused", weights, adapter, threads=3).items():
        assert same_bits(tensor, whole[name])


def test_adapters_of_transformers_4_onto_mixtral(tmp_path: Path) -> None:
    """One expert each, by the names on the disk, equals PEFT's fusion of them (block-diagonal)."""
    model = build("MixtralForCausalLM", MOE | TEXT)
    model.save_pretrained(tmp_path / "base")
    adapter = train(model, tmp_path / "fused", target_parameters=FUSED)
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    tensors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    single = {}
    for layer in range(2):
        old = f"{PREFIX}model.layers.{layer}.mlp.experts"
        new = f"{PREFIX}model.layers.{layer}.block_sparse_moe.experts"
        for key, parts in ((f"{old}.base_layer", ("w1", "w3")), (old, ("w2",))):
            a, b = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
            for e in range(4):
                for part, rows in zip(parts, b.chunk(len(parts)), strict=True):
                    single[f"{new}.{e}.{part}.lora_A.weight"] = a[e * 2 : e * 2 + 2].clone()
                    single[f"{new}.{e}.{part}.lora_B.weight"] = rows[:, e::4].contiguous()
    (tmp_path / "single").mkdir()
    save_file(single, tmp_path / "single" / "adapter_model.safetensors")
    config |= {"target_parameters": None, "target_modules": ["w1", "w2", "w3"]}
    (tmp_path / "single" / "adapter_config.json").write_text(json.dumps(config))
    adaptertool.merge(tmp_path / "base", [tmp_path / "single"], tmp_path / "out2")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "out2" / "model.safetensors"
    ).read_bytes()


def test_a_part_of_a_square_expert_that_is_stored_transposed_without_a_mark(tmp_path: Path) -> None:
    """Llama 4 with hidden size 2·I: by its shape gate_proj could be the upper rows, and it is the left columns."""
    weights = torch.randn(2, 8, 8)
    base = write_checkpoint(tmp_path / "base", {f"{X}.gate_up_proj": weights}, config=CONFIGS["transposed"])
    factors = lora_factors(f"{X}.0.gate_proj", (4, 8))
    adaptertool.merge(base, [write_adapter(tmp_path / "a", factors)], tmp_path / "out")
    a, b = (factors[f"{X}.0.gate_proj.lora_{part}.weight"].double() for part in "AB")
    exact = weights.double()
    exact[0, :, :4] += (b @ a).T * 2
    assert half_ulp_excess(load(tmp_path / "out")[f"{X}.gate_up_proj"], exact).max() <= 1 + 1e-6


@pytest.mark.parametrize(("version", "on_first"), [("0.18.1", True), ("0.19.0", None), ("0.21.2", None), (None, None)])
def test_square_experts_of_a_marked_family(tmp_path: Path, version: str | None, on_first: bool | None) -> None:
    """From PEFT 0.19 on the side of lora_A depends on transformers' version as well: 4 has no mark, 5 has."""
    sizes = (E_, H_, H_)
    weights = experts(sizes)
    factors = {key: f for key, f in fused_factors(True, sizes).items() if "base_layer" not in key}
    adapter = write_adapter(tmp_path / "adapter", factors, r=R_, target_parameters=FUSED[1:], peft_version=version)
    if on_first is None:
        words = "does not tell" if version is None else "depends on the version of transformers in training"
        with pytest.raises(UnsupportedError, match=words):
            merged_experts(tmp_path, "interleaved", weights, adapter)
        return
    name = f"{X}.down_proj"
    found = merged_experts(tmp_path, "interleaved", weights, adapter)[name]
    exact = by_formula(store(*weights, "interleaved")[name], factors, X, on_first)
    assert half_ulp_excess(found, exact).max() <= 1 + 1e-6


@pytest.mark.long
@pytest.mark.parametrize("targets", [["gate_proj", "up_proj", "down_proj"], ["down_proj"], ["gate_proj", "up_proj"]])
@pytest.mark.parametrize("name", ["Qwen3MoeForCausalLM", "MixtralForCausalLM", "DeepseekV3ForCausalLM"])
def test_target_modules_that_peft_turns_into_parameters(tmp_path: Path, name: str, targets: list[str]) -> None:
    """It writes bare names then, which fit below every module: also below the layers beside the experts."""
    model = build(name, MODELS[name][0])
    model.save_pretrained(tmp_path / "base", max_shard_size="60KB")
    if name == "MixtralForCausalLM":
        targets = [{"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}[target] for target in targets]
    adapter = train(model, tmp_path / "adapter", target_modules=[*targets, "q_proj", "o_proj"])
    names = json.loads((adapter / "adapter_config.json").read_text())["target_parameters"]
    assert names and not any("." in entry for entry in names)
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    assert compare(model, tmp_path / "base", adapter, tmp_path / "out", torch.float32) > 0


@pytest.mark.parametrize("name", ["Qwen3MoeForCausalLM", "Llama4ForCausalLM", "GptOssForCausalLM"])
def test_a_list_of_parameters_for_several_architectures(tmp_path: Path, name: str) -> None:
    """Entries that match nothing are PEFT's habit: what the base has decides."""
    fields, _ = MODELS[name]
    model = build(name, fields)
    model.save_pretrained(tmp_path / "base")
    entries = ["experts.gate_up_proj", "experts.up_proj", "experts.down_proj", "moe.w1"]
    adapter = train(model, tmp_path / "adapter", target_parameters=entries)
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    assert compare(model, tmp_path / "base", adapter, tmp_path / "out", torch.float32) == 4


def test_more_parameters_than_the_file_has_factors_for(tmp_path: Path) -> None:
    """Of two that the base has, the file has one: which one?"""
    factors = {key: f for key, f in fused_factors(False).items() if "base_layer" not in key}
    adapter = write_adapter(tmp_path / "a", factors, r=R_, target_parameters=["up_proj", *FUSED])
    with pytest.raises(InputError, match=r"for 1 parameters of .* names 2 that the base has: gate_up_proj, down_proj"):
        merged_experts(tmp_path, "fused", experts(), adapter)


@pytest.mark.parametrize("gap", [f"{X}.1.down_proj.weight", f"{X}.0.up_proj.weight", f"{X}.0.down_proj.weight"])
def test_an_expert_that_is_not_there(tmp_path: Path, gap: str) -> None:
    """Later experts must not be left as they are in silence, also where the architecture is not known."""
    weights = store(*experts(), "unknown")
    del weights[gap]
    base = write_checkpoint(tmp_path / "base", weights, config=CONFIGS["unknown"])
    factors = {key: f[:, : 2 * R_] if "lora_B" in key else f[: 2 * R_] for key, f in fused_factors(False).items()}
    factors = {key: f.contiguous() for key, f in factors.items()}
    adapter = write_adapter(tmp_path / "adapter", factors, r=R_, target_parameters=FUSED)
    with pytest.raises(MismatchError, match="not all there, while some of later experts are"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


@pytest.mark.parametrize("how", ["apart", "fused"])
def test_factors_of_all_experts_are_read_once(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns of an expert lie in turn with those of the others; found one at a time all would be read E times."""
    weights, factors = experts(), fused_factors(False)
    adapter = write_adapter(tmp_path / "adapter", factors, r=R_, target_parameters=FUSED)
    read: list[int] = []
    real = tensors_module.read_stored

    def counted(inputs: Any, ref: Any, first: int, last: int) -> torch.Tensor:
        if ref.columns is not None:
            read.append(last - first)
        return real(inputs, ref, first, last)

    monkeypatch.setattr(tensors_module, "read_stored", counted)
    found = merged_experts(tmp_path, how, weights, adapter, threads=1)
    # The check before the run reads small factors together, and not by this
    assert sum(read) == sum(tensor.numel() for key, tensor in factors.items() if "lora_B" in key)
    for window, kept in ((1, 8), (1, 1), (10**9, 1), (2 * R_ * H_ * 4, 2)):
        monkeypatch.setattr(tensors_module, "WINDOW", window)
        monkeypatch.setattr(tensors_module, "KEPT", kept)
        again = merged_experts(tmp_path, how, weights, adapter, threads=2, force=True)
        assert all(same_bits(found[name], tensor) for name, tensor in again.items())


def test_a_dry_run_folds_the_edits_of_equal_experts(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", one_by_one(), r=R_)
    base = write_checkpoint(tmp_path / "base", store(*experts(), "fused"), config=CONFIGS["fused"])
    report = adaptertool.preview(adaptertool.prepare_merge(base, [adapter]), tmp_path / "out")
    text = plan_text(report, every_tensor=True)
    assert f"{X}.down_proj  F32 3×6×4  3 times lora scale 4 6 rows" in text
    assert " then " not in text
