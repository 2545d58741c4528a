"""truncate --base: how far the merged weights move, against PEFT's merges of both adapters in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, lora_factors, main_here, write_adapter, write_checkpoint
from expert_models import H_, LLAMA, MODELS, PHI, SIZES, Q, fuse, split_weights
from expert_models import train as train_experts
from layers import LAYERS, Attention, make_adapter, make_base, peft_merge
from models import build
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

import adaptertool
from adaptertool.algebra import effect
from adaptertool.errors import MismatchError, NonFiniteError
from adaptertool.tasks.truncate import truncate


def moved(before: torch.Tensor, whole: torch.Tensor, cut: torch.Tensor) -> float:
    return float((cut - whole).norm() / (whole - before.double()).norm())


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dora", [False, True])
def test_every_layer_against_peft(
    tmp_path: Path, dora: bool, dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effect, "_PART", block)
    zoo, base = make_base(tmp_path / "base", dtype)
    patterns = {"rank_pattern": {"conv2": 5, "linear": 6}, "alpha_pattern": {"embedding": 9}, "use_rslora": True}
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=LAYERS, r=4, use_dora=dora, bias="all", **patterns)
    report = truncate(adapter, tmp_path / "out", rank=2, base=base)
    whole, cut = peft_merge(zoo, adapter), peft_merge(zoo, tmp_path / "out")
    before = zoo.state_dict()
    assert {one.layer for one in report.layers} == set(LAYERS) and report.base == str(base)
    for one in report.layers:
        key = f"{one.layer}.weight"
        wanted = moved(before[key], whole[key], cut[key])
        assert one.effect is not None and one.effect > 0.01
        assert one.effect == pytest.approx(wanted, rel=1e-9 if not dora else 1e-6)  # PEFT has its norms in float32
        assert dora or one.effect == pytest.approx(one.error, abs=one.storing + 1e-12)
    weights = (tmp_path / "base" / "model.safetensors").stat().st_size if dora else 0
    files = sum(path.stat().st_size for path in adapter.iterdir() if path.name != "README.md")
    assert 0 <= report.bytes_read - files - weights * 0.8 <= weights + (adapter / "README.md").stat().st_size


@pytest.mark.parametrize("transposed", [False, True])
def test_dora_against_a_dense_oracle(tmp_path: Path, transposed: bool) -> None:
    """Of factors and magnitudes as they are stored, here BF16 and F32."""
    generator = np.random.default_rng(3)
    out, inner, rank = 40, 24, 8
    weight = torch.from_numpy(generator.normal(size=(out, inner))).float()
    m = weight.norm(dim=1) * torch.linspace(0.3, 2, out)
    pair = lora_factors("x", (out, inner), rank, torch.bfloat16)
    stored = weight.T.contiguous() if transposed else weight
    base = write_checkpoint(tmp_path / "base", {"x.weight": stored}, config={"tie_word_embeddings": False})
    adapter = write_adapter(
        tmp_path / "a", {**pair, "x.lora_magnitude_vector": m}, r=rank, target_modules=["x"], use_dora=True,
        fan_in_fan_out=transposed,
    )  # fmt: skip
    report = truncate(adapter, tmp_path / "out", rank=3, base=base)

    def merged(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
        a, b = (load(path)[f"base_model.model.x.lora_{name}.weight"].double().numpy() for name in "AB")
        scale = 8 / rank
        v = weight.double().numpy() + scale * b @ a
        return m.double().numpy()[:, None] * v / np.linalg.norm(v, axis=1, keepdims=True)

    whole, cut = merged(adapter), merged(tmp_path / "out")
    wanted = np.linalg.norm(cut - whole) / np.linalg.norm(whole - weight.double().numpy())
    assert report.layers[0].effect == pytest.approx(wanted, rel=1e-12)
    assert report.layers[0].error != pytest.approx(wanted, rel=0.01)  # the norms count


def test_experts_of_one_tensor(tmp_path: Path) -> None:
    fields, parameters = MODELS["Qwen3MoeForCausalLM"]
    model = build("Qwen3MoeForCausalLM", fields).float()
    model.save_pretrained(tmp_path / "base")
    adapter = train_experts(model, tmp_path / "a", target_parameters=parameters, r=4)
    report = truncate(adapter, tmp_path / "out", rank=2, base=tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole, cut = peft_merge(model, adapter), peft_merge(model, tmp_path / "out")
    assert len(report.layers) == 2 * len(parameters)
    for one in report.layers:
        wanted = moved(before[one.layer], whole[one.layer], cut[one.layer])
        assert one.effect == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_projections_that_the_base_has_otherwise(tmp_path: Path, fused: bool, dora: bool) -> None:
    """Factors of one for a part of a tensor, or for several tensors: the effect is that on a base that has them as the
    adapter."""
    weights = split_weights(bias=False)
    sizes = {"qkv_proj": 16} if fused else SIZES
    factors: dict[str, torch.Tensor] = {}
    for name, rows in sizes.items():
        factors |= lora_factors(f"{Q}.{name}", (rows, H_))
        if dora:
            factors[f"{Q}.{name}.lora_magnitude_vector"] = torch.rand(rows) + 1
    adapter = write_adapter(tmp_path / "a", factors, use_dora=dora)
    found = []
    for number, (config, stored) in enumerate(((LLAMA, weights), (PHI, fuse(weights)))):
        base = write_checkpoint(tmp_path / f"base{number}", stored, config=config)
        found.append([one.effect for one in truncate(adapter, tmp_path / f"out{number}", rank=2, base=base).layers])
    assert len(found[0]) == len(sizes) and all(effect is not None and effect > 0.01 for effect in found[0])
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_both_projections_of_a_multihead_attention(tmp_path: Path) -> None:
    """As merged: twice the change of out_proj."""
    model = Attention().double()
    base = write_checkpoint(tmp_path / "base", {name: tensor.clone() for name, tensor in model.state_dict().items()})
    tuned = get_peft_model(model, LoraConfig(target_modules=["attn"], r=6, lora_alpha=5, init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "a")
    (one,) = truncate(tmp_path / "a", tmp_path / "out", rank=2, base=base).layers
    for name in ("a", "out"):
        adaptertool.merge(base, [tmp_path / name], tmp_path / f"merged-{name}")
    before, whole, cut = (
        torch.cat([load(tmp_path / name)[key] for key in ("attn.in_proj_weight", "attn.out_proj.weight")])
        for name in ("base", "merged-a", "merged-out")
    )
    assert one.effect == pytest.approx(moved(before, whole, cut), rel=1e-9)


def test_layers_that_keep_their_rank_move_nothing(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear"], use_dora=True)
    report = truncate(adapter, tmp_path / "out", rank=9, base=base)
    assert [one.effect for one in report.layers] == [0.0]
    assert [one.effect for one in truncate(adapter, tmp_path / "other", rank=1).layers] == [None]


def test_dry_run_threads_and_bytes(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=LAYERS, use_dora=True)
    dry = truncate(adapter, tmp_path / "out", rank=1, base=base, dry_run=True, threads=1)
    assert not (tmp_path / "out").exists()
    assert truncate(adapter, tmp_path / "out", rank=1, base=base, threads=3).layers == dry.layers
    truncate(adapter, tmp_path / "plain", rank=1)
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_a_base_with_other_names(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear", "conv2"], use_dora=True)
    tensors = {f"inner.{name}": tensor for name, tensor in zoo.state_dict().items()}
    other = write_checkpoint(tmp_path / "other", tensors, config={"tie_word_embeddings": False})
    report = truncate(adapter, tmp_path / "out", rank=1, base=base)
    again = truncate(adapter, tmp_path / "again", rank=1, base=other, renames=["^=>inner."])
    assert again.layers == report.layers


def test_a_base_that_does_not_fit(tmp_path: Path) -> None:
    zoo, _ = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear"], use_dora=True)
    for number, tensors in enumerate(({"linear.weight": torch.ones(20, 13)}, {"other.weight": torch.ones(2, 2)})):
        base = write_checkpoint(tmp_path / str(number), tensors)
        with pytest.raises(MismatchError, match="linear"):
            truncate(adapter, tmp_path / "out", rank=1, base=base)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_damaged_base_leaves_nothing(tmp_path: Path, number: float) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear", "turned"], use_dora=True)
    tensors = {name: tensor.clone() for name, tensor in zoo.state_dict().items()}
    tensors["turned.weight"][3, 2] = number
    write_checkpoint(base, tensors, config={"tie_word_embeddings": False})
    with pytest.raises(NonFiniteError, match=r"turned\.weight"):
        truncate(adapter, tmp_path / "out", rank=1, base=base)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "a"}


def test_a_magnitude_that_is_no_number(tmp_path: Path) -> None:
    factors = {**lora_factors("x", (9, 7)), "x.lora_magnitude_vector": torch.ones(9)}
    factors["x.lora_magnitude_vector"][4] = float("nan")
    adapter = write_adapter(tmp_path / "a", factors, target_modules=["x"], use_dora=True)
    with pytest.raises(NonFiniteError, match="magnitude_vector holds nan at element 4"):
        truncate(adapter, tmp_path / "out", rank=1)


@pytest.mark.parametrize("size", [1e-170, 1e170])
def test_numbers_whose_squares_are_beyond_float64(tmp_path: Path, size: float) -> None:
    """Of LoRA they are no matter; of DoRA the norms are not known."""
    factors = {name: t.double() for name, t in lora_factors("x", (9, 7)).items()}
    factors["x.lora_B.weight"] *= size
    base = write_checkpoint(tmp_path / "base", {"x.weight": torch.randn(9, 7, dtype=torch.float64) * size})
    adapter = write_adapter(tmp_path / "a", factors, target_modules=["x"])
    (one,) = truncate(adapter, tmp_path / "out", rank=2, base=base).layers
    assert one.effect == pytest.approx(one.error, rel=1e-9) and one.error > 0.01
    factors["x.lora_magnitude_vector"] = torch.full((9,), size, dtype=torch.float64)
    adapter = write_adapter(tmp_path / "dora", factors, target_modules=["x"], use_dora=True)
    with pytest.raises(NonFiniteError, match="the norm of a row"):
        truncate(adapter, tmp_path / "other", rank=2, base=base)
    assert not (tmp_path / "other").exists()


def test_a_change_that_only_the_truncated_adapter_makes(tmp_path: Path) -> None:
    """V = 2·W, which the magnitude takes back: W' is W, but not once V has another direction."""
    weight = torch.tensor([[3.0, 4.0], [5.0, -12.0], [15.0, 8.0]])
    factors = {"x.lora_A.weight": torch.eye(2), "x.lora_B.weight": weight}
    factors["x.lora_magnitude_vector"] = weight.norm(dim=1)
    adapter = write_adapter(tmp_path / "a", factors, r=2, lora_alpha=2, target_modules=["x"], use_dora=True)
    base = write_checkpoint(tmp_path / "base", {"x.weight": weight})
    (one,) = truncate(adapter, tmp_path / "out", rank=1, base=base).layers
    assert one.effect is None and one.error > 0.1


@pytest.mark.parametrize("dora", [False, True])
def test_a_saved_embedding_is_no_part_of_the_change(tmp_path: Path, dora: bool) -> None:
    """W is then what the adapter has saved, which the change is made to."""
    zoo, base = make_base(tmp_path / "base", torch.float32)
    before = zoo.embedding.weight.detach().clone()
    with torch.no_grad():
        zoo.embedding.weight.add_(torch.randn(33, 9) * 10)
    make_adapter(tmp_path / "a", zoo, target_modules=["embedding"], use_dora=dora)
    path = tmp_path / "a" / "adapter_model.safetensors"
    key = "base_model.model.embedding.base_layer.weight"
    save_file({**load(path), key: zoo.embedding.weight.detach().contiguous()}, path)
    assert not zoo.embedding.weight.equal(before)
    (one,) = truncate(tmp_path / "a", tmp_path / "out", rank=1, base=base).layers
    whole, cut = (peft_merge(zoo, tmp_path / name)["embedding.weight"] for name in ("a", "out"))
    assert one.effect == pytest.approx(moved(zoo.embedding.weight.detach(), whole, cut), rel=1e-6)


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=LAYERS, use_dora=True)
    arguments = ["truncate", str(adapter), "--rank", "1", "--base", str(base)]
    assert main_here([*arguments, "-o", str(tmp_path / "out")], monkeypatch) == 0
    text = capsys.readouterr().out
    assert f"effect   the merged weights of {base} move by 0." in text and "  effect 0." in text
    assert main_here([*arguments, "-o", str(tmp_path / "b"), "--json", "-q"], monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["base"] == str(base) and all(0 < one["effect"] < 2 for one in report["layers"])
    assert all(one["values"] == [] and one["family"] for one in report["layers"])
    assert main_here([*arguments, "-o", str(base)], monkeypatch) == 2
