"""`--as-trained`: the base as a QLoRA run had it, in 4 bits of bitsandbytes and decoded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Tensors, load, lora_factors, main_here, write_adapter, write_checkpoint
from quantised_bases import Q, X

import adaptertool as library
from adaptertool.errors import NonFiniteError, UnsupportedError, UsageError

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
SHAPES = {Q: (40, 72), X: (96, 128)}
KEPT = {"model.embed_tokens": (50, 64), "lm_head": (50, 64)}


def dense(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    plain = {f"{name}.weight": (torch.randn(shape) * 0.02).to(dtype) for name, shape in (SHAPES | KEPT).items()}
    return plain | {"model.norm.weight": torch.ones(64, dtype=dtype)}


def by_library(weight: torch.Tensor, choice: str) -> torch.Tensor:
    functional = pytest.importorskip("bitsandbytes.functional")
    return functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type=choice[:3]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("choice", ["nf4", "fp4"])
def test_the_base_is_what_bitsandbytes_decodes(tmp_path: Path, choice: str, dtype: torch.dtype) -> None:
    """Layers that nothing changes too; and head, embedding and norms are as they were."""
    tensors = dense(dtype)
    base = write_checkpoint(tmp_path / "base", tensors, config=CONFIG)
    factors = lora_factors(X, SHAPES[X])
    adapter = write_adapter(tmp_path / "adapter", factors)
    report = library.merge(base, [adapter], tmp_path / "out", as_trained=choice, verify=True)
    found = load(tmp_path / "out")
    assert found[f"{Q}.weight"].equal(by_library(tensors[f"{Q}.weight"], choice))
    for name in (*KEPT, "model.norm"):
        assert found[f"{name}.weight"].equal(tensors[f"{name}.weight"])
    a, b = (factors[f"{X}.lora_{one}.weight"].double() for one in "AB")
    change = b @ a * 2  # alpha 8, rank 4
    exact = by_library(tensors[f"{X}.weight"], choice).double() + change
    assert found[f"{X}.weight"].equal(exact.to(dtype))
    assert any("2 of 5 tensors" in note for note in report.notes)


@pytest.mark.parametrize("shape", [(96, 128), (33, 37), (520, 256), (1, 1000)])
def test_double_quantisation(tmp_path: Path, shape: tuple[int, int]) -> None:
    """By torch, as bitsandbytes' CUDA kernels and default backend have it: 8 bits by the middles between numbers."""
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = (torch.randn(shape) * 0.02).bfloat16()
    base = write_checkpoint(tmp_path / "base", {f"{X}.weight": weight, f"{Q}.weight": torch.randn(8, 6)}, config=CONFIG)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(Q, (8, 6)))
    library.merge(base, [adapter], tmp_path / "out", as_trained="nf4-double")
    codes, state = functional.quantize_4bit(weight, quant_type="nf4")
    offset = state.absmax.double().mean().float()
    apart, table = state.absmax - offset, functional.create_dynamic_map()
    padded = torch.nn.functional.pad(apart, (0, -len(apart) % 256)).view(-1, 256)
    largest = padded.abs().amax(1)
    scaled = (padded * (1 / largest[:, None])).clamp(-1, 1)
    if rest := len(apart) % 256:
        scaled[-1, :rest] = (padded[-1, :rest] / largest[-1]).clamp(-1, 1)
    nearest = table[torch.bucketize(scaled, (table[:-1] + table[1:]) / 2)]
    state.absmax = (nearest * largest[:, None]).view(-1)[: len(apart)] + offset
    assert load(tmp_path / "out")[f"{X}.weight"].equal(functional.dequantize_4bit(codes, state))


@pytest.mark.parametrize("choice", ["nf4", "nf4-double", "fp4"])
def test_verify_names_the_other_base(tmp_path: Path, choice: str) -> None:
    base = write_checkpoint(tmp_path / "base", dense(), config=CONFIG)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, SHAPES[X]))
    merged = {"dense": tmp_path / "dense", choice: tmp_path / "rounded"}
    library.merge(base, [adapter], merged["dense"])
    library.merge(base, [adapter], merged[choice], as_trained=choice)
    assert library.verify(merged["dense"], base, [adapter]).ok
    assert library.verify(merged[choice], base, [adapter], as_trained=choice, strict=True).ok
    plain = library.verify(merged[choice], base, [adapter])
    assert {one.diagnosis for one in plain.tensors if one.status != "exact"} == {f"{choice[:3]}-base"}
    asked = library.verify(merged["dense"], base, [adapter], as_trained=choice)
    assert {one.name for one in asked.tensors if one.diagnosis == "dense-base"} == {f"{X}.weight", f"{Q}.weight"}
    assert not plain.ok and not asked.ok and asked.summary.diagnosis == ("dense-base",)


def test_other_tools_merge_into_what_the_library_decodes(tmp_path: Path) -> None:
    """In float32, from numbers that were rounded to bf16."""
    tensors = dense()
    base = write_checkpoint(tmp_path / "base", tensors, config=CONFIG)
    factors = lora_factors(X, SHAPES[X])
    a, b = (factors[f"{X}.lora_{one}.weight"] for one in "AB")
    merged = tensors | {f"{Q}.weight": by_library(tensors[f"{Q}.weight"], "nf4")}
    merged[f"{X}.weight"] = (by_library(tensors[f"{X}.weight"], "nf4").float() + 2 * b @ a).bfloat16()
    other = write_checkpoint(tmp_path / "merged", merged, config=CONFIG)
    assert library.verify(other, base, [write_adapter(tmp_path / "a", factors)], as_trained="nf4").ok


def test_between_is_the_same_base(tmp_path: Path) -> None:
    tensors = dense()
    base = write_checkpoint(tmp_path / "base", tensors, config=CONFIG)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, SHAPES[X]))
    library.wise(base, adapter, tmp_path / "out", [0, 0.5], as_trained="nf4")
    found = load(tmp_path / "out" / "alpha-0.000")
    for name in (Q, X):
        assert found[f"{name}.weight"].equal(by_library(tensors[f"{name}.weight"], "nf4"))
    assert library.verify(tmp_path / "out" / "alpha-0.500", base, [adapter], alpha=0.5, as_trained="nf4").ok


def test_what_is_refused(tmp_path: Path) -> None:
    """Where it is not certain which weights are quantised, or what for."""
    tensors, factors = dense(), lora_factors(X, SHAPES[X])
    adapter = write_adapter(tmp_path / "adapter", factors)

    def refusal(error: type[Exception], match: str, more: Tensors | None = None, **config: object) -> None:
        base = write_checkpoint(
            tmp_path / str(len(list(tmp_path.iterdir()))), tensors | (more or {}), config=CONFIG | config
        )
        with pytest.raises(error, match=match):
            library.merge(base, [adapter], tmp_path / "out", as_trained="nf4")

    refusal(UnsupportedError, "not known for the architecture", architectures=["Unheard"])
    refusal(UnsupportedError, "is not known for the architecture", architectures=["GPT2LMHeadModel"], model_type="gpt2")
    refusal(
        UnsupportedError, "is a matrix that LlamaForCausalLM has not", {"model.layers.0.mtp.weight": torch.ones(2, 2)}
    )
    scales = {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)}  # of a base that is quantised already
    codes = {f"{Q}.weight": torch.zeros(SHAPES[Q]).to(torch.float8_e4m3fn)}
    refusal(UnsupportedError, r"F8_E4M3; .* merge into it with --dtype bf16", {**scales, **codes})
    refusal(NonFiniteError, "NaN of whole blocks", {f"{Q}.weight": torch.full(SHAPES[Q], float("nan"))})
    base = write_checkpoint(tmp_path / "base", tensors, config=CONFIG)
    with pytest.raises(UsageError, match="nf4, nf4-double"):
        library.merge(base, [adapter], tmp_path / "out", as_trained="int4")
    with pytest.raises(UsageError, match="made of adapters"):
        library.wise(base, base, tmp_path / "out", [0.5], as_trained="nf4")


def test_parts_of_a_layer(tmp_path: Path) -> None:
    """Experts that are one parameter in memory stay; what is joined there is refused where blocks would be others."""
    config = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "tie_word_embeddings": False}
    expert, gate = "model.layers.0.block_sparse_moe.experts.0.w1.weight", "model.layers.0.block_sparse_moe.gate.weight"
    tensors = {name: torch.randn(8, 64).bfloat16() for name in (expert, gate, f"{Q}.weight")}
    base = write_checkpoint(tmp_path / "base", tensors, config=config)
    library.merge(base, [write_adapter(tmp_path / "a", lora_factors(Q, (8, 64)))], tmp_path / "out", as_trained="nf4")
    found = load(tmp_path / "out")
    assert found[expert].equal(tensors[expert]) and found[gate].equal(tensors[gate])
    assert not found[f"{Q}.weight"].equal(tensors[f"{Q}.weight"])


def test_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_checkpoint(tmp_path / "base", dense(), config=CONFIG)
    adapter, out = write_adapter(tmp_path / "a", lora_factors(X, SHAPES[X])), str(tmp_path / "out")
    asked = [str(base), str(adapter), "--as-trained", "nf4"]
    assert main_here(["merge", *asked, "-o", out, "-q"], monkeypatch) == 0
    assert main_here(["verify", out, *asked, "-q"], monkeypatch) == 0
    assert main_here(["verify", out, *asked[:2], "-q"], monkeypatch) == 1
    assert main_here(["wise", *asked, "--alpha", "0.5", "-o", f"{out}2", "-q"], monkeypatch) == 0
    assert main_here(["merge", str(base), str(adapter), "--as-trained", "int4", "-o", out], monkeypatch) == 2
