"""merge against closed formulas: exact rationals on adversarial tensors, dense float64 on larger ones."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import fractions, half_ulp_excess, round_fraction
from safetensors.torch import save_file

import adaptertool
from adaptertool.arithmetic import tiling
from adaptertool.errors import NonFiniteError, UnsupportedError, UsageError

Q = "model.layers.0.self_attn.q_proj"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def base_tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    return {
        f"{Q}.weight": torch.randn(40, 24).to(dtype),
        f"{Q}.bias": torch.randn(40).to(dtype),
        "model.norm.weight": torch.randn(24).to(dtype),
        "model.embed_tokens.weight": torch.randn(50, 24).to(dtype),
        "lm_head.weight": torch.randn(50, 24).to(dtype),
    }


def merged(tmp_path: Path, base: Path, *adapters: Path, **options: Any) -> dict[str, torch.Tensor]:
    adaptertool.merge(base, adapters, tmp_path / "out", **options)
    return load(tmp_path / "out")


def delta(factors: dict[str, torch.Tensor], module: str, scale: float) -> torch.Tensor:
    a, b = (factors[f"{module}.lora_{x}.weight"].to(torch.float64) for x in "AB")
    return scale * (b @ a)


@pytest.mark.parametrize("factor_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_formula_in_every_pair_of_dtypes(tmp_path: Path, dtype: torch.dtype, factor_dtype: torch.dtype) -> None:
    tensors, factors = base_tensors(dtype), lora_factors(Q, (40, 24), dtype=factor_dtype)
    base = write_checkpoint(tmp_path / "base", tensors)
    out = merged(tmp_path, base, write_adapter(tmp_path / "a", factors))
    exact = tensors[f"{Q}.weight"].to(torch.float64) + delta(factors, Q, 2.0)
    assert half_ulp_excess(out[f"{Q}.weight"], exact).max() <= 1 + 1e-9
    assert not same_bits(out[f"{Q}.weight"], tensors[f"{Q}.weight"])
    for name in tensors.keys() - {f"{Q}.weight"}:
        assert same_bits(out[name], tensors[name])


@pytest.mark.parametrize("alpha", [8, 7, 0.3, -2, 0])
@pytest.mark.parametrize("rslora", [False, True])
def test_scaling(tmp_path: Path, alpha: float, rslora: bool) -> None:
    tensors, factors = base_tensors(torch.float32), lora_factors(Q, (40, 24))
    base = write_checkpoint(tmp_path / "base", tensors)
    out = merged(tmp_path, base, write_adapter(tmp_path / "a", factors, lora_alpha=alpha, use_rslora=rslora))
    scale = alpha / math.sqrt(4) if rslora else alpha / 4
    exact = tensors[f"{Q}.weight"].to(torch.float64) + delta(factors, Q, scale)
    assert half_ulp_excess(out[f"{Q}.weight"], exact).max() <= 1 + 1e-6


def test_small_integers_are_exact_to_the_last_bit(tmp_path: Path) -> None:
    """Where float64 holds everything exactly, the result is the correct rounding of the rational value."""
    w = torch.randint(-300, 300, (16, 8)).to(torch.bfloat16)
    a, b = torch.randint(-9, 9, (4, 8)).to(torch.float32), torch.randint(-9, 9, (16, 4)).to(torch.float32)
    base = write_checkpoint(tmp_path / "base", {f"{Q}.weight": w})
    adapter = write_adapter(tmp_path / "a", {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b}, lora_alpha=1)
    out = merged(tmp_path, base, adapter)[f"{Q}.weight"]
    exact = [
        Fraction(int(w[i, j])) + Fraction(1, 4) * sum(int(b[i, k]) * int(a[k, j]) for k in range(4))
        for i in range(16)
        for j in range(8)
    ]
    assert fractions(out) == [round_fraction(value, torch.bfloat16) for value in exact]


def test_patterns(tmp_path: Path) -> None:
    names = ["model.layers.0.mlp.up_proj", "model.layers.10.mlp.up_proj", "model.layers.1.mlp.up_proj"]
    tensors = {f"{name}.weight": torch.randn(12, 8) for name in names}
    ranks = [2, 4, 6]
    factors = {}
    for name, rank in zip(names, ranks, strict=True):
        factors |= lora_factors(name, (12, 8), rank=rank)
    adapter = write_adapter(
        tmp_path / "a",
        factors,
        r=4,
        lora_alpha=8,
        rank_pattern={"layers.0.mlp.up_proj": 2, r"model\.layers\.1\..*": 6},
        alpha_pattern={r"layers\.10\.mlp\.up_proj": 3, "0.mlp.up_proj": 5},
    )
    out = merged(tmp_path, write_checkpoint(tmp_path / "base", tensors), adapter)
    for name, scale in zip(names, [5 / 2, 3 / 4, 8 / 6], strict=True):
        exact = tensors[f"{name}.weight"].to(torch.float64) + delta(factors, name, scale)
        assert half_ulp_excess(out[f"{name}.weight"], exact).max() <= 1 + 1e-6


def test_several_adapters_round_once(tmp_path: Path) -> None:
    """Different ranks, alphas and dtypes; a chain with a rounding in between would miss by up to a whole ulp."""
    tensors = base_tensors()
    base = write_checkpoint(tmp_path / "base", tensors)
    specs = [(2, 5, torch.float32), (8, 3, torch.bfloat16), (5, 9, torch.float16)]
    weights = [0.7, -1.3, 2.0]
    exact = tensors[f"{Q}.weight"].to(torch.float64)
    adapters = []
    for number, ((rank, alpha, dtype), weight) in enumerate(zip(specs, weights, strict=True)):
        factors = lora_factors(Q, (40, 24), rank=rank, dtype=dtype)
        adapters.append(write_adapter(tmp_path / str(number), factors, r=rank, lora_alpha=alpha))
        exact = exact + weight * delta(factors, Q, alpha / rank)
    out = merged(tmp_path, base, *adapters, weights=weights)
    assert half_ulp_excess(out[f"{Q}.weight"], exact).max() <= 1 + 1e-9


def test_saved_tensors_replace_and_mix(tmp_path: Path) -> None:
    tensors = base_tensors()
    base = write_checkpoint(tmp_path / "base", tensors)
    head, bias = torch.randn(50, 24).to(torch.bfloat16), torch.randn(40)  # the bias in float32: rounded once
    saved = {"lm_head.weight": head, f"{Q}.base_layer.bias": bias} | lora_factors(Q, (40, 24))
    adapter = write_adapter(tmp_path / "a", saved, modules_to_save=["lm_head"], bias="lora_only")
    out = merged(tmp_path, base, adapter)
    assert same_bits(out["lm_head.weight"], head)
    assert same_bits(out[f"{Q}.bias"], bias.to(torch.bfloat16))

    adaptertool.merge(base, [adapter], tmp_path / "half", weights=[0.5])
    w, t = tensors["lm_head.weight"].to(torch.float64), head.to(torch.float64)
    assert half_ulp_excess(load(tmp_path / "half")["lm_head.weight"], w + 0.5 * (t - w)).max() <= 1 + 1e-9


def test_a_later_replacement_wins_and_a_later_delta_adds(tmp_path: Path) -> None:
    tensors = base_tensors(torch.float32)
    base = write_checkpoint(tmp_path / "base", tensors)
    lora = write_adapter(tmp_path / "lora", factors := lora_factors("lm_head", (50, 24)))
    head = torch.randn(50, 24)
    saved = write_adapter(tmp_path / "saved", {"lm_head.weight": head}, modules_to_save=["lm_head"])
    adaptertool.merge(base, [lora, saved], tmp_path / "1")
    assert same_bits(load(tmp_path / "1")["lm_head.weight"], head)
    adaptertool.merge(base, [saved, lora], tmp_path / "2")
    exact = head.to(torch.float64) + delta(factors, "lm_head", 2.0)
    assert half_ulp_excess(load(tmp_path / "2")["lm_head.weight"], exact).max() <= 1 + 1e-6


def test_a_weight_of_zero_is_the_base(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", base_tensors(), shards=2)
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (40, 24)))
    adaptertool.merge(base, [adapter], tmp_path / "out", weights=[0.0])
    out = snapshot(tmp_path / "out")
    del out["adaptertool.manifest.json"]
    assert out == snapshot(base)


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_zero_stays_where_nothing_is_added(tmp_path: Path, dtype: torch.dtype) -> None:
    w = torch.full((8, 8), -0.0).to(dtype)
    factors = lora_factors(Q, (8, 8))
    factors[f"{Q}.lora_B.weight"][:4] = 0
    out = merged(
        tmp_path, write_checkpoint(tmp_path / "base", {f"{Q}.weight": w}), write_adapter(tmp_path / "a", factors)
    )
    result = out[f"{Q}.weight"]
    assert same_bits(result[:4].contiguous(), w[:4].contiguous())
    assert (result[4:] != 0).all()


def test_cancellation_gives_positive_zero(tmp_path: Path) -> None:
    w = torch.ones(4, 4)
    factors = {f"{Q}.lora_A.weight": torch.ones(1, 4), f"{Q}.lora_B.weight": -torch.ones(4, 1)}
    base = write_checkpoint(tmp_path / "base", {f"{Q}.weight": w})
    out = merged(tmp_path, base, write_adapter(tmp_path / "a", factors, r=1, lora_alpha=1))[f"{Q}.weight"]
    assert same_bits(out, torch.zeros(4, 4))


def test_float16_range(tmp_path: Path) -> None:
    """65504 + 15 is valid and rounds to 65504; 65504 + 16 ties to infinity and is an error that names the tensor."""

    def run(add: float, name: str) -> torch.Tensor:
        base = write_checkpoint(tmp_path / name / "base", {f"{Q}.weight": torch.full((2, 2), 65504.0).half()})
        ones = {f"{Q}.lora_A.weight": torch.ones(1, 2), f"{Q}.lora_B.weight": torch.full((2, 1), float(add))}
        adapter = write_adapter(tmp_path / name / "a", ones, r=1, lora_alpha=1)
        return merged(tmp_path / name, base, adapter)[f"{Q}.weight"]

    assert (run(15, "fits") == 65504).all()
    with pytest.raises(NonFiniteError, match=r"q_proj\.weight, element \(0, 0\).*beyond the range of F16"):
        run(16, "overflows")
    assert not (tmp_path / "overflows" / "out").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("role", ["lora_A", "lora_B"])
def test_non_finite_factor_is_refused_before_writing(tmp_path: Path, bad: float, role: str) -> None:
    factors = lora_factors(Q, (40, 24))
    factors[f"{Q}.{role}.weight"][1, 2] = bad
    base = write_checkpoint(tmp_path / "base", base_tensors())
    written: list[int] = []
    with pytest.raises(NonFiniteError, match=f"{role}"):
        adaptertool.merge(base, [write_adapter(tmp_path / "a", factors)], tmp_path / "out", progress=written.append)
    assert not written and sorted(p.name for p in tmp_path.iterdir()) == ["a", "base"]


def test_non_finite_base(tmp_path: Path) -> None:
    """NaN in a tensor that nothing edits is copied; in an edited one it is an error."""
    tensors = base_tensors()
    tensors["model.norm.weight"][3] = math.nan
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (40, 24)))
    out = merged(tmp_path, write_checkpoint(tmp_path / "base", tensors), adapter)
    assert same_bits(out["model.norm.weight"], tensors["model.norm.weight"])
    tensors[f"{Q}.weight"][1, 3] = math.inf
    base = write_checkpoint(tmp_path / "base2", tensors)
    with pytest.raises(NonFiniteError, match=r"q_proj\.weight, element \(1, 3\) holds inf; such"):
        adaptertool.merge(base, [adapter], tmp_path / "out2")


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 33),
    rank=st.integers(1, 6),
    block=st.sampled_from([1, 7, 64, 4096]),
    threads=st.integers(1, 4),
    shards=st.integers(1, 3),
)
def test_same_bytes_for_any_blocks_and_threads(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, rank: int, block: int, threads: int, shards: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("laws")
    tensors = {
        f"{Q}.weight": torch.randn(rows, columns).bfloat16(),
        f"{Q}.bias": torch.randn(rows).bfloat16(),
        "a.weight": torch.randn(3).bfloat16(),
    }
    base = write_checkpoint(tmp_path / "base", tensors, shards=shards)
    factors = lora_factors(Q, (rows, columns), rank=rank) | {f"{Q}.bias": torch.randn(rows)}
    adapter = write_adapter(tmp_path / "a", factors, r=rank, bias="all")
    adaptertool.merge(base, [adapter], tmp_path / "1", threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "BLOCK_ELEMENTS", block)
        adaptertool.merge(base, [adapter], tmp_path / "2", threads=threads)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")


def test_everything_else_is_kept_byte_for_byte(tmp_path: Path) -> None:
    """Header bytes, metadata, shard names, index and assets; also dtypes that torch cannot open."""
    base = write_checkpoint(
        tmp_path / "base", base_tensors(), shards=3, config={"tie_word_embeddings": False, "x": "é"}
    )
    (base / "tokenizer.json").write_text("{}")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text("{ }\n")
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (40, 24)))
    before = snapshot(base), snapshot(adapter)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    assert (snapshot(base), snapshot(adapter)) == before
    out = snapshot(tmp_path / "out")
    del out["adaptertool.manifest.json"]
    changed = [name for name, data in snapshot(base).items() if out.pop(name) != data]
    assert not out and changed == ["model-00001-of-00003.safetensors"]


def test_single_file_base(tmp_path: Path) -> None:
    tensors = base_tensors()
    save_file(tensors, tmp_path / "w.safetensors")
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (40, 24)))
    adaptertool.merge(tmp_path / "w.safetensors", [adapter], tmp_path / "out.safetensors")
    adaptertool.merge(tmp_path / "w.safetensors", [adapter], tmp_path / "dir")
    base = write_checkpoint(tmp_path / "base", tensors)
    adaptertool.merge(base, [adapter], tmp_path / "whole")
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()[-1000:]
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "dir" / "w.safetensors").read_bytes()
    assert (tmp_path / "out.safetensors").read_bytes()[-1000:] == expected


def test_edit_of_a_stored_integer_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{Q}.weight": torch.zeros(40, 24, dtype=torch.int8)})
    with pytest.raises(UnsupportedError, match="quantised"):
        adaptertool.merge(base, [write_adapter(tmp_path / "a", lora_factors(Q, (40, 24)))], tmp_path / "out")


def test_weights_must_match_the_adapters(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", base_tensors())
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (40, 24)))
    for weights in ([], [1.0, 2.0], [math.nan], [math.inf]):
        with pytest.raises(UsageError, match="weight"):
            adaptertool.merge(base, [adapter], tmp_path / "out", weights=weights)
    with pytest.raises(UsageError, match="list of paths"):
        adaptertool.merge(base, str(adapter), tmp_path / "out")  # type: ignore[arg-type]


def test_report(tmp_path: Path) -> None:
    tensors = base_tensors()
    base = write_checkpoint(tmp_path / "base", tensors)
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (40, 24)))
    seen: list[int] = []
    report = adaptertool.merge(base, [adapter], tmp_path / "out", progress=seen.append)
    size = sum(path.stat().st_size for path in base.iterdir())
    assert (report.tensors_edited, report.tensors_copied) == (1, len(tensors) - 1)
    assert report.bytes_written == sum(seen) == size
    assert report.bytes_read == size + (4 * 24 + 40 * 4) * 4
    assert report.outputs == (str(tmp_path / "out"),) and report.seconds > 0
