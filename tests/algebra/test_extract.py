"""extract: what was tuned, as an adapter: against dense float64 SVDs, merged again, and loaded by PEFT."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from conftest import FIXTURES, load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM
from tuned_models import EYE, TINY, deltas, in_peft, model_of, saved, tune, write_pair

from adaptertool.errors import (
    MismatchError,
)
from adaptertool.tasks.extract import extract
from adaptertool.tasks.run import merge


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
def test_no_worse_than_the_best_of_its_rank_and_as_reported(
    pair: tuple[Path, Path], tmp_path: Path, dtype: str
) -> None:
    report = extract(*pair, tmp_path / "out", rank=5, dtype=dtype)
    wanted, found = deltas(*pair), in_peft(pair[0], tmp_path / "out")
    assert {one.tensor for one in report.tensors} == wanted.keys()
    for one in report.tensors:
        delta, left = wanted[one.tensor], wanted[one.tensor] - found[one.tensor]
        assert one.norm == pytest.approx(float(delta.norm()), rel=1e-9)
        assert float(left.norm() / delta.norm()) == pytest.approx(one.error, rel=1e-6, abs=1e-14)
        assert one.energy == pytest.approx(1 - one.error**2)
        if one.how == "factors":
            values = torch.linalg.svdvals(delta)
            best = float(values[5:].norm() / values.norm())
            assert one.rank == 5
            assert best * (1 - 1e-9) <= one.error <= best * (1.01 if dtype != "bf16" else 1.03)
        else:
            assert (one.how, one.error, one.rank) == ("saved", 0, 0)
    stored = load(tmp_path / "out")
    assert {str(t.dtype) for name, t in stored.items() if "lora_" in name} == {
        {"f32": "torch.float32", "bf16": "torch.bfloat16", "f64": "torch.float64"}[dtype]
    }


@pytest.mark.parametrize("limit", [{"energy": "0.8"}, {"max_error": "0.3"}])
def test_each_layer_gets_the_rank_that_it_needs(tmp_path: Path, limit: dict[str, str]) -> None:
    base, tuned = {}, {}
    for number, decay in enumerate((0.3, 0.8, 0.95, 1.0)):
        name = f"layers.{number}.proj.weight"
        left, right = (torch.linalg.qr(torch.randn(size, 60, dtype=torch.float64))[0] for size in (150, 120))
        base[name] = torch.zeros(150, 120, dtype=torch.float64)
        tuned[name] = left * decay ** torch.arange(60) @ right.T
    paths = write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "tuned", tuned)
    report = extract(*paths, tmp_path / "out", dtype="f64", **limit)  # type: ignore[arg-type]
    for one in report.tensors:
        values = torch.linalg.svdvals(tuned[one.tensor])
        tails = torch.stack([values[rank:].norm() / values.norm() for rank in range(61)])
        enough = (tails**2 <= 0.2) if "energy" in limit else tails <= 0.3
        assert abs(one.rank - int(enough.int().argmax())) <= 1
        assert one.error <= (0.2**0.5 * 1.01 if "energy" in limit else 0.3)
    assert len({one.rank for one in report.tensors}) == 4
    rows = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert len(rows["rank_pattern"]) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_at_full_rank_the_merge_is_the_tuned_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    model = model_of("llama", dtype, tie_word_embeddings=False, attention_bias=True)
    base = saved(model, tmp_path / "base")
    tune(model)
    tuned = saved(model, tmp_path / "tuned")
    report = extract(base, tuned, tmp_path / "out", rank=1000)
    assert max(one.error for one in report.tensors) < 1e-6
    merge(base, [tmp_path / "out"], tmp_path / "merged")
    after = load(tmp_path / "merged")
    for name, tensor in load(tuned).items():
        assert (after[name].double() - tensor.double()).abs().max() < 1e-7
        if dtype != torch.float32:  # all but numbers next to 0, where the neighbours are nearer than that
            assert (after[name] != tensor).sum() < 3


def test_a_merge_is_taken_apart_again(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in (FIXTURES / "base").iterdir():
        target = base / file.name
        target.write_bytes(file.read_bytes())
    merge(base, [FIXTURES / "lora"], tmp_path / "merged")
    report = extract(base, tmp_path / "merged", tmp_path / "out", max_error="0.25")
    merge(base, [tmp_path / "out"], tmp_path / "again")
    wanted, found = deltas(base, tmp_path / "merged"), deltas(base, tmp_path / "again")
    told = {one.tensor: one for one in report.tensors}
    for name, delta in wanted.items():
        assert (name in told) == bool(delta.any())
        if name in told:
            assert told[name].error <= 0.25
            # what bf16 rounds once more
            assert float((found[name] - delta).norm() / delta.norm()) <= 0.5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "bloom", "qwen2"])
def test_peft_loads_what_is_extracted_from_many_architectures(tmp_path: Path, family: str) -> None:
    fields = {"word_embed_proj_dim": 24, "ffn_dim": 40} if family == "opt" else {}
    fields |= {"n_layer": 2, "n_head": 2} if family == "bloom" else {}
    model = model_of(family, tie_word_embeddings=False, **fields)
    base = saved(model, tmp_path / "base")
    tune(model)
    tuned = saved(model, tmp_path / "tuned")
    extract(base, tuned, tmp_path / "out", rank=100)
    found, after = in_peft(base, tmp_path / "out"), AutoModelForCausalLM.from_pretrained(tuned).double().state_dict()
    before = AutoModelForCausalLM.from_pretrained(base).double().state_dict()
    for name, delta in found.items():
        assert (delta - (after[name] - before[name])).abs().max() < 1e-7, name
    merge(base, [tmp_path / "out"], tmp_path / "merged")
    merged = load(tmp_path / "merged")
    for name, tensor in load(tuned).items():
        assert (merged[name].double() - tensor.double()).abs().max() < 1e-7, name


MAMBA = {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4}
MAMBAS = {
    "mamba": MAMBA | {"time_step_rank": 3, "use_bias": True},
    "falcon_mamba": MAMBA | {"time_step_rank": 3},
    "mamba2": MAMBA | {"num_heads": 6, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_h1": TINY | {"mamba_d_ssm": 24, "mamba_n_heads": 4, "mamba_d_head": 6, "mamba_d_state": 4,
                         "mamba_n_groups": 1, "mamba_chunk_size": 8},
    "nemotron_h": {key: value for key, value in TINY.items() if key != "num_hidden_layers"} | {
        "layers_block_type": ["mamba", "attention"], "head_dim": 12, "mamba_num_heads": 4, "mamba_head_dim": 12,
        "ssm_state_size": 4, "n_groups": 1, "chunk_size": 8},
}  # fmt: skip


@pytest.mark.parametrize("family", MAMBAS)
def test_layers_that_peft_takes_no_factors_for_are_saved_whole(tmp_path: Path, family: str) -> None:
    config = AutoConfig.for_model(family, **MAMBAS[family], tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config).float()
    base = saved(model, tmp_path / "base")
    tune(model)
    tuned = saved(model, tmp_path / "tuned")
    report = extract(base, tuned, tmp_path / "out", rank=100)
    assert f"in {family} models PEFT does not load, or does not use, factors for them" in report.notes[-1]
    how = {one.tensor.split(".")[-2]: one.how for one in report.tensors}
    assert (how["in_proj"], how["out_proj"], how["conv1d"]) == ("factors", "saved", "saved")
    text = torch.arange(10)[None]
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tuned)(text).logits
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
        assert (adapted(text).logits - wanted).abs().max() < 1e-4
    merge(base, [tmp_path / "out"], tmp_path / "merged")
    merged = load(tmp_path / "merged")
    for name, tensor in load(tuned).items():
        assert (merged[name].double() - tensor.double()).abs().max() < 1e-7, name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tied_ends_stay_tied(tmp_path: Path, family: str) -> None:
    model = model_of(family, tie_word_embeddings=True)
    base = saved(model, tmp_path / "base")
    tune(model, "embed|wte|q_proj|c_attn")
    tuned = saved(model, tmp_path / "tuned")
    assert "lm_head.weight" not in load(base)
    extract(base, tuned, tmp_path / "out", rank=24)
    merge(base, [tmp_path / "out"], tmp_path / "merged")
    assert load(tmp_path / "merged").keys() == load(base).keys()
    text = torch.arange(10)[None]
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tuned)(text).logits
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
        assert (adapted(text).logits - wanted).abs().max() < 1e-5


def test_a_base_saved_without_its_head(tmp_path: Path) -> None:
    model = model_of("gpt2")
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    for folder in (base, tuned):
        model.transformer.save_pretrained(folder)
        model.config.architectures = ["GPT2LMHeadModel"]
        model.config.save_pretrained(folder)
        tune(model, "attn|ln_1")
    assert "wte.weight" in load(base)
    extract(base, tuned, tmp_path / "out", rank=24)
    found = in_peft(base, tmp_path / "out")
    for name, delta in deltas(base, tuned).items():
        assert (found[f"transformer.{name}"] - delta).abs().max() < 1e-7


def test_only_what_was_changed_is_in_it(tmp_path: Path) -> None:
    model = model_of("llama", tie_word_embeddings=False, attention_bias=True)
    base = saved(model, tmp_path / "base")
    tune(model, r"layers\.1\.(mlp\.up_proj|self_attn\.k_proj\.bias|self_attn\.v_proj|input_layernorm)")
    tuned = saved(model, tmp_path / "tuned")
    report = extract(base, tuned, tmp_path / "out", rank=2)
    assert report.unchanged == len(load(base)) - 5
    assert {key.removeprefix("base_model.model.model.layers.1.") for key in load(tmp_path / "out")} == {
        "mlp.up_proj.lora_A.weight", "mlp.up_proj.lora_B.weight", "self_attn.v_proj.lora_A.weight",
        "self_attn.v_proj.lora_B.weight", "self_attn.v_proj.base_layer.bias", "self_attn.k_proj.bias",
        "input_layernorm.weight",
    }  # fmt: skip
    wanted, found = deltas(base, tuned), in_peft(base, tmp_path / "out")
    for name in ("k_proj.bias", "v_proj.bias"):
        key = f"model.layers.1.self_attn.{name}"
        assert (found[key] - wanted[key]).abs().max() < 1e-12


def test_what_is_left_out_is_said(pair: tuple[Path, Path], tmp_path: Path) -> None:
    report = extract(*pair, tmp_path / "out", rank=3, leave_out=["norm", "embed_tokens|lm_head"])
    lost = {one.tensor for one in report.tensors if one.how == "left out"}
    assert lost == {name for name in load(pair[0]) if re.search("norm|embed_tokens|lm_head", name)}
    wanted = deltas(*pair)
    for one in report.tensors:
        if one.how == "left out":
            assert (one.error, one.energy) == (1, 0)
            assert one.norm == pytest.approx(float(wanted[one.tensor].norm()))
    assert all("lora_" in key for key in load(tmp_path / "out"))


def test_what_is_left_out_needs_no_equal_shapes(tmp_path: Path) -> None:
    model = model_of("llama", tie_word_embeddings=False)
    base = saved(model, tmp_path / "base")
    model.resize_token_embeddings(53)
    tune(model)
    tuned = saved(model, tmp_path / "tuned")
    for one, other in (("lm_head", "embed_tokens"), ("embed_tokens", "lm_head")):
        with pytest.raises(MismatchError, match=rf"{other}.weight is F32 50×24 .* but F32 53×24"):
            extract(base, tuned, tmp_path / "out", rank=3, leave_out=[one])
    report = extract(base, tuned, tmp_path / "out", rank=3, leave_out=["embed_tokens|lm_head"])
    assert f"lm_head.weight is left out: it is F32 50×24 in {base}, and F32 53×24 in {tuned}" in report.notes
    assert sum("is left out" in note for note in report.notes) == 2
    assert not {one.tensor for one in report.tensors} & {"lm_head.weight", "model.embed_tokens.weight"}
    merge(base, [tmp_path / "out"], tmp_path / "merged")


@pytest.mark.parametrize("side", [0, 1])
def test_what_is_left_out_may_be_on_one_side_only(tmp_path: Path, side: int) -> None:
    tensors = [{"a.weight": torch.eye(4), "i": torch.arange(3)}, {"a.weight": 2 * torch.eye(4), "i": torch.arange(3)}]
    tensors[side]["lm_head.weight"] = torch.eye(4)
    paths = write_pair(tmp_path, *tensors, tie_word_embeddings=False)
    report = extract(*paths, tmp_path / "out", rank=4, leave_out=["lm_head"])
    places = ["F32 4×4", "absent"][:: 1 if side == 0 else -1]
    note = f"lm_head.weight is left out: it is {places[0]} in {paths[0]}, and {places[1]} in {paths[1]}"
    assert note in report.notes and report.unchanged == 1
    with pytest.raises(MismatchError, match=r"lm_head\.weight"):
        extract(*paths, tmp_path / "no", rank=4)


def test_signs_of_zeros_and_equal_nans_are_no_change(tmp_path: Path) -> None:
    base = {"a.weight": torch.zeros(4, 4), "b.weight": torch.eye(4), "odd.weight": torch.full((3,), torch.nan)}
    tuned = {**base, "a.weight": -torch.zeros(4, 4), "b.weight": 2 * torch.eye(4)}
    report = extract(
        write_checkpoint(tmp_path / "b", base), write_checkpoint(tmp_path / "t", tuned), tmp_path / "out", rank=4
    )
    assert [one.tensor for one in report.tensors] == ["b.weight"]
    assert report.tensors[0].error < 1e-7


def test_the_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    shapes = {f"l.{n}.proj.weight": (300 + n, 200) for n in range(5)}
    base = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    tuned = {name: (tensor.float() + 0.1 * torch.randn(tensor.shape)).bfloat16() for name, tensor in base.items()}
    paths = write_checkpoint(tmp_path / "b", base, shards=2), write_checkpoint(tmp_path / "t", tuned)
    outs = []
    for threads in (1, 3):
        extract(*paths, tmp_path / str(threads), rank=6, threads=threads)
        outs.append(snapshot(tmp_path / str(threads)))
    assert outs[0] == outs[1]
    delta = deltas(*paths)["l.2.proj.weight"]
    values = torch.linalg.svdvals(delta)
    report = extract(*paths, tmp_path / "again", rank=6, dry_run=True)
    assert not (tmp_path / "again").exists()
    error = next(one.error for one in report.tensors if one.tensor == "l.2.proj.weight")
    assert error <= 1.01 * float(values[6:].norm() / values.norm())


def test_saved_modules_keep_the_bits_of_the_tuned_checkpoint(pair: tuple[Path, Path], tmp_path: Path) -> None:
    extract(*pair, tmp_path / "out", rank=1)
    tuned = load(pair[1])
    for key, tensor in load(tmp_path / "out").items():
        if "lora_" not in key:
            assert same_bits(tensor, tuned[key.removeprefix("base_model.model.")])


@pytest.mark.parametrize("rank", [1, 4])
def test_what_was_merged_in_float32_is_recovered(tmp_path: Path, rank: int) -> None:
    """Extract after merge gives the delta of the adapter, at its rank."""
    base = {f"{name}.weight": torch.randn(90, 70) for name in ("x", "y", "z")}
    path = write_checkpoint(tmp_path / "base", base)
    factors = {key: t for name in ("x", "y") for key, t in lora_factors(name, (90, 70), rank).items()}
    merge(path, [write_adapter(tmp_path / "lora", factors, r=rank)], tmp_path / "merged")
    report = extract(path, tmp_path / "merged", tmp_path / "out", rank=rank)
    assert {one.tensor for one in report.tensors} == {"x.weight", "y.weight"}
    again = load(tmp_path / "out")
    for name in ("x", "y"):
        wanted = 8 / rank * factors[f"{name}.lora_B.weight"].double() @ factors[f"{name}.lora_A.weight"].double()
        b, a = (again[f"base_model.model.{name}.lora_{role}.weight"].double() for role in "BA")
        assert float((b @ a - wanted).norm() / wanted.norm()) < 1e-5


def test_the_manifest_names_what_it_was_made_of(pair: tuple[Path, Path], tmp_path: Path) -> None:
    extract(*pair, tmp_path / "out", energy="0.5", leave_out=["norm"])
    manifest = json.loads((tmp_path / "out" / "adaptertool.manifest.json").read_text())
    assert (manifest["recipe"]["command"], manifest["recipe"]["cut"]) == ("extract", {"energy": "0.5"})
    assert [source["name"] for source in manifest["recipe"]["sources"]] == ["base", "tuned"]
    for source, path in zip(manifest["inputs"]["sources"], pair, strict=True):
        facts = source["model.safetensors"]
        data = (path / "model.safetensors").read_bytes()
        assert facts == {"size": len(data), "blake3": blake3(data).hexdigest()}


def test_notes(tmp_path: Path) -> None:
    a, b = {"x.weight": EYE, "n.weight": EYE[0].clone()}, {"x.weight": 2 * EYE, "n.weight": EYE[1].double()}
    base, tuned = write_checkpoint(tmp_path / "a", a), write_checkpoint(tmp_path / "b", b, config={"vocab_size": 9})
    notes = extract(base, tuned, tmp_path / "out", rank=4).notes
    assert notes[0].startswith("config.json differs: model_type, tie_word_embeddings, vocab_size; an adapter changes")
    assert notes[1].startswith("saved tensors are stored as F64")
