"""wise --as-adapter: the adapter that is written, merged into the base, against W + α·(T − W) with PEFT's own T.

What must hold, with u = 2⁻²⁴ (B', m' and saved tensors are float32 here):
LoRA:  only lora_alpha changes, so the merge is a correct rounding.
DoRA:  W'' = e·(W + s·B'·A), where B' and m' have one relative rounding each: u·(|W''| + |α·d·s|·|B|·|A|), and that of
       the merge, half an ulp.
Saved: correctly rounded, to its own dtype.
"""

from __future__ import annotations

import json
import math
import struct
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, PREFIX, load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from conftest import adaptertool as command
from interpolated import U, closed, train
from layers import LAYERS, make_base, peft_merge
from oracle import fractions, half_ulp_excess, round_fraction
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import adaptertool
from adaptertool.arithmetic import tiling
from adaptertool.errors import OutputError, UsageError
from adaptertool.kinds.dora import interpolated

ALPHAS = ["0", "0.25", "1", "1.5", "-0.5"]
DTYPES = [torch.bfloat16, torch.float32]
PATTERNS = {"rank_pattern": {"conv2": 2, "linear": 5}, "alpha_pattern": {"embedding": 9, "conv1": 2.5}}
SCALES = {"linear": 5 / 5**0.5, "embedding": 9 / 3**0.5, "conv1": 2.5 / 3**0.5, "conv2": 5 / 2**0.5}


def dora_terms(before: dict[str, torch.Tensor], adapter: Path, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(d·V, |d·s|·|B|·|A|) of one layer of the zoo, dense and in float64."""
    factors = {name.removeprefix(f"{PREFIX}{layer}."): t.double() for name, t in load(adapter).items()}
    kind = "lora_embedding_{}" if layer == "embedding" else "lora_{}.weight"
    a, b = (factors[kind.format(role)].flatten(1) for role in "AB")
    m, scale = factors["lora_magnitude_vector"].flatten(), SCALES.get(layer, 5 / 3**0.5)
    turned = layer in ("turned", "embedding")
    weight = before[f"{layer}.weight"].double()
    flat = weight.T if turned else weight.flatten(1)
    changed = flat + scale * b @ a
    ratio = (m / changed.norm(dim=1))[:, None]
    both = ratio * changed, (ratio * scale).abs() * (b.abs() @ a.abs())
    return tuple((x.T if turned else x).reshape(weight.shape) for x in both)  # type: ignore[return-value]


def half_ulp(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Of the binade of `exact`."""
    excess = half_ulp_excess(torch.zeros_like(exact).to(dtype), exact)
    return torch.where(exact == 0, 0.0, exact.abs() / excess)


@pytest.mark.long("dtype")
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layer(tmp_path: Path, dtype: torch.dtype, dora: bool, alpha: str) -> None:
    """Linear, Conv1D, Embedding, convolutions and biases, with rsLoRA and patterns: merged by us, and by PEFT."""
    zoo, base = make_base(tmp_path / "base", dtype)
    adapter = train(tmp_path / "a", zoo, target_modules=LAYERS, use_dora=dora, bias="all", use_rslora=True, **PATTERNS)
    inputs = snapshot(tmp_path)
    adaptertool.wise(base, adapter, tmp_path / "out", alpha, as_adapter=True)
    assert {name: data for name, data in snapshot(tmp_path).items() if not name.startswith("out/")} == inputs
    adaptertool.merge(base, [tmp_path / "out"], tmp_path / "merged")
    adaptertool.wise(base, adapter, tmp_path / "wise", alpha)
    before, ours, wise = load(base), load(tmp_path / "merged"), load(tmp_path / "wise")
    tuned, theirs, number = peft_merge(zoo, adapter), peft_merge(zoo, tmp_path / "out"), float(alpha)
    changed = 0
    for name, weight in before.items():
        layer, exact = name.removesuffix(".weight"), weight.double() + number * (tuned[name] - weight.double())
        changed += not tuned[name].equal(weight.double())
        if dora and layer in LAYERS:
            dense, terms = dora_terms(before, adapter, layer)
            assert torch.allclose(dense, tuned[name], rtol=1e-12, atol=1e-14)
            slack = U * (exact.abs() + abs(number) * terms) * (1 + 1e-5) + 1e-15
        elif layer in LAYERS:
            slack = 1e-15 * exact.abs().max()
        else:
            slack = U * exact.abs() * (1 + 1e-5)
        rounding = half_ulp(exact, dtype) * (1 + 1e-6)
        assert ((ours[name].double() - exact).abs() <= rounding + slack).all(), name
        assert ((ours[name].double() - wise[name].double()).abs() <= 2 * rounding + slack).all(), name
        assert ((theirs[name] - exact).abs() <= slack).all(), name
        if alpha in ("0", "1") and not (dora and layer in LAYERS and dtype == torch.float32):
            assert same_bits(ours[name], wise[name]), name
    assert changed == len(LAYERS) + 6


@pytest.mark.parametrize("dora", [False, True])
def test_gpt2(tmp_path: Path, dora: bool) -> None:
    """Conv1D with a square layer, shards, and PEFT unmerged: the logits of OUT are those of the interpolation."""
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=2, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 4)
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    layers = ["c_attn", "c_proj", "c_fc", "wte"]
    adapter = train(tmp_path / "a", model, target_modules=layers, use_dora=dora, lora_dropout=0.0)
    adaptertool.wise(tmp_path / "base", adapter, tmp_path / "out", 0.3, as_adapter=True)
    before, tuned, theirs = load(tmp_path / "base"), peft_merge(model, adapter), peft_merge(model, tmp_path / "out")
    changed = 0
    for name, weight in before.items():
        exact = weight.double() + 0.3 * (tuned[name] - weight.double())
        changed += not exact.equal(weight.double())
        assert (theirs[name] - exact).norm() <= 2 * U * exact.norm(), name
    assert changed == 9


def test_lora_keeps_its_factors_byte_for_byte(tmp_path: Path) -> None:
    """And the header, which is laid out as the reference writer does it; the other fields of the config stay."""
    for name in ("lora", "rslora"):
        adapter = FIXTURES / name
        adaptertool.wise(FIXTURES / "base", adapter, tmp_path / name, "0.3", as_adapter=True)
        fields, scaled = (json.loads((path / "adapter_config.json").read_text()) for path in (adapter, tmp_path / name))
        assert scaled["lora_alpha"] == float(Fraction("0.3") * fields["lora_alpha"])
        assert scaled["alpha_pattern"] == {k: float(Fraction("0.3") * v) for k, v in fields["alpha_pattern"].items()}
        same = {"lora_alpha": None, "alpha_pattern": None}
        assert list(scaled) == list(fields) and scaled | same == fields | same
        if name == "lora":
            weights = "adapter_model.safetensors"
            assert (tmp_path / name / weights).read_bytes() == (adapter / weights).read_bytes()
        adaptertool.wise(FIXTURES / "base", adapter, tmp_path / f"{name} wise", "0.3")
        adaptertool.merge(FIXTURES / "base", [tmp_path / name], tmp_path / f"{name} merged")
        wise, merged = load(tmp_path / f"{name} wise"), load(tmp_path / f"{name} merged")
        differ = sum(int((wise[key] != merged[key]).sum()) for key in wise)
        assert differ <= sum(tensor.numel() for tensor in wise.values()) * 1e-4


@pytest.mark.long("number")
@pytest.mark.parametrize("alpha", ["0.1", "0.25", "-1.5", "1", "0", "1e-3", "1e-99999999", "0.333333333333333333333"])
@pytest.mark.parametrize("number", [16, 1, 0.1, 7.5, 3e200, -2])
def test_lora_alpha_is_the_nearest_number(tmp_path: Path, number: float, alpha: str) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(6, 5)})
    patterns = {"alpha_pattern": {"l": number, "other": 3}}
    adapter = write_adapter(tmp_path / "a", lora_factors("l", (6, 5)), lora_alpha=number, **patterns)
    adaptertool.wise(base, adapter, tmp_path / "out", alpha, as_adapter=True)
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    for found, given in ((fields["lora_alpha"], number), (fields["alpha_pattern"]["other"], 3)):
        exact = Fraction(alpha if len(alpha) < 9 or "e" not in alpha else "0") * Fraction(given)
        assert isinstance(found, int) == (exact.denominator == 1)
        others = [math.nextafter(float(found), towards) for towards in (-math.inf, math.inf)]
        assert all(abs(Fraction(found) - exact) <= abs(Fraction(other) - exact) for other in others)
    assert fields["alpha_pattern"]["l"] == fields["lora_alpha"]


@pytest.mark.long("dtype")
@pytest.mark.parametrize("alpha", ["0", "0.25", "1", "1.5", "-0.5"])
@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_tensors_are_rounded_correctly(
    tmp_path: Path, dtype: torch.dtype, saved: torch.dtype, alpha: str
) -> None:
    """modules_to_save, a bias, and base_layer.weight under LoRA: W + α·(T − W) by rationals, in the dtype of T."""
    tensors = {"l.weight": torch.randn(6, 5), "norm.weight": torch.randn(40), "l.bias": torch.randn(6)}
    base = write_checkpoint(tmp_path / "base", {name: tensor.to(dtype) for name, tensor in tensors.items()})
    pairs = {"l.weight": "l.base_layer.weight", "norm.weight": "norm.weight", "l.bias": "l.base_layer.bias"}
    new = {key: (tensors[name] + torch.randn(tensors[name].shape) / 9).to(saved) for name, key in pairs.items()}
    adapter = write_adapter(tmp_path / "a", lora_factors("l", (6, 5)) | new, bias="all", modules_to_save=["norm"])
    report = adaptertool.wise(base, adapter, tmp_path / "out", alpha, as_adapter=True)
    narrow = saved != dtype and dtype == torch.float32
    assert any("has its precision, not F32" in note for note in report.notes) == narrow
    before, found = load(base), load(tmp_path / "out")
    for name, key in pairs.items():
        assert found[PREFIX + key].dtype == saved
        exact = [
            x + Fraction(alpha) * (y - x) for x, y in zip(fractions(before[name]), fractions(new[key]), strict=True)
        ]
        assert fractions(found[PREFIX + key]) == [round_fraction(value, saved) for value in exact]
    if saved == torch.float32:
        adaptertool.merge(base, [tmp_path / "out"], tmp_path / "merged")
        adaptertool.wise(base, adapter, tmp_path / "wise", alpha)
        ours, wise = load(tmp_path / "merged"), load(tmp_path / "wise")
        step = 2 * half_ulp(wise["l.weight"].double(), dtype) + 2 * U * before["l.weight"].double().abs()
        assert ((ours["l.weight"].double() - wise["l.weight"].double()).abs() <= step).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("tokens", [[3, 17, 5], [40, 41, 42, 7]], ids=str)
def test_token_rows(tmp_path: Path, tokens: list[int], dora: bool, tied: bool) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=tied)).bfloat16()
    model.save_pretrained(tmp_path / "base")
    options = {"target_modules": ["q_proj"], "trainable_token_indices": tokens, "use_dora": dora}
    adapter = train(tmp_path / "a", model, **options)
    adaptertool.wise(tmp_path / "base", adapter, tmp_path / "out", "0.75", as_adapter=True)
    name, key = "model.embed_tokens.weight", f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
    rows, new = fractions(load(tmp_path / "base")[name][tokens]), fractions(load(adapter)[key])
    exact = [x + Fraction(3, 4) * (y - x) for x, y in zip(rows, new, strict=True)]
    assert fractions(load(tmp_path / "out")[key]) == [round_fraction(value, torch.float32) for value in exact]
    before, tuned, theirs = load(tmp_path / "base"), peft_merge(model, adapter), peft_merge(model, tmp_path / "out")
    for key, weight in before.items():
        wanted = weight.double() + 0.75 * (tuned[key] - weight.double())
        assert (theirs[key] - wanted).norm() <= 2 * U * wanted.norm(), key
    assert not theirs[name][tokens].equal(before[name][tokens].double())
    plan = adaptertool.prepare_wise(tmp_path / "base", adapter, "0.75", as_adapter=True)
    (tensor,) = [tensor for tensor in adaptertool.preview(plan, tmp_path / "no").tensors if "token" in tensor.name]
    assert (tensor.action, tensor.shape, tensor.bytes) == ("edit", (len(tokens), 16), len(tokens) * 64)


@pytest.mark.parametrize("layer", ["linear", "turned", "embedding", "conv2"])
def test_dora_in_16_bits_is_stored_in_32(tmp_path: Path, layer: str) -> None:
    """B and m; A stays as it is. Wide tensors come first, aligned. At α = 1 nothing is lost."""
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapter = train(tmp_path / "a", zoo, target_modules=[layer], use_dora=True)
    save_file(
        {name: t.bfloat16() for name, t in load(adapter).items()}, adapter / "adapter_model.safetensors", {"kept": "é"}
    )
    assert closed(tmp_path, base, adapter) == 1
    given, found = load(adapter), load(tmp_path / "out")
    for name, tensor in given.items():
        is_a = "lora_A" in name or "lora_embedding_A" in name
        assert found[name].dtype == (torch.bfloat16 if is_a else torch.float32)
        assert found[name].shape == tensor.shape
        assert same_bits(found[name], tensor) if is_a else not found[name].equal(tensor.float())
    raw = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__") == {"kept": "é"}
    for entry in header.values():
        assert entry["data_offsets"][0] % (4 if entry["dtype"] == "F32" else 2) == 0
    adaptertool.wise(base, adapter, tmp_path / "one", 1, as_adapter=True)
    assert all(same_bits(t, given[name].to(t.dtype)) for name, t in load(tmp_path / "one").items())


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 1.5])
def test_the_closed_formula(alpha: float) -> None:
    """In float64: W + α·(d·V − W) = (m'/‖V'‖)·V', with V' = W + s·B'·A."""
    w, b, a = (torch.randn(shape, dtype=torch.float64) for shape in ((7, 12), (7, 3), (3, 12)))
    v = w + 0.7 * b @ a
    norm = v.norm(dim=1, keepdim=True)
    m = norm * (1 + torch.rand(7, 1, dtype=torch.float64) / 3)
    factor, length = interpolated(m, norm, alpha)
    turned = w + 0.7 * (factor * b) @ a
    found = (length * turned.norm(dim=1, keepdim=True)) / turned.norm(dim=1, keepdim=True) * turned
    assert torch.allclose(found, w + alpha * (m / norm * v - w), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("turned", [False, True])
def test_the_magnitude_goes_with_the_rounded_factor(tmp_path: Path, turned: bool) -> None:
    """Where B·A is large, the rounding of B' would else move the length of the row by as much as that of m'."""
    weight, factors = torch.randn(500, 6), lora_factors("l", (500, 6), rank=2)
    factors = {**factors, "l.lora_magnitude_vector": torch.rand(500) + 3}
    config = {"model_type": "gpt2", "tie_word_embeddings": False}
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight.T.contiguous() if turned else weight}, config=config)
    adapter = write_adapter(tmp_path / "a", factors, r=2, lora_alpha=40, use_dora=True)
    adaptertool.wise(base, adapter, tmp_path / "out", 0.6, as_adapter=True)
    given, found = ({key: t.double() for key, t in load(path).items()} for path in (adapter, tmp_path / "out"))
    old, new = (
        (weight.double() + 20 * f[f"{PREFIX}l.lora_B.weight"] @ f[f"{PREFIX}l.lora_A.weight"]).norm(dim=1)
        for f in (given, found)
    )
    key = f"{PREFIX}l.lora_magnitude_vector"
    exact = (1 - 0.6 + 0.6 * given[key] / old) * new
    assert half_ulp_excess(found[key].float(), exact).max() <= 1 + 1e-6


@pytest.mark.parametrize("dora", [False, True])
def test_threads_blocks_and_sweeps_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dora: bool) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapter = train(tmp_path / "a", zoo, target_modules=LAYERS, use_dora=dora, bias="all")
    options: dict[str, Any] = {"as_adapter": True}
    report = adaptertool.wise(base, adapter, tmp_path / "1", "0:1:0.25", threads=1, **options)
    assert [Path(folder).name for folder in report.outputs][1:3] == ["alpha-0.250", "alpha-0.500"]
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 40)
    adaptertool.wise(base, adapter, tmp_path / "2", "0:1:0.25", threads=5, **options)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")
    for folder in report.outputs:
        alpha = folder.rpartition("-")[2]
        adaptertool.wise(base, adapter, tmp_path / alpha, Decimal(alpha), **options)
        assert snapshot(tmp_path / alpha) == snapshot(Path(folder))


def test_other_files_travel_and_stale_weights_do_not(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(6, 5)})
    adapter = write_adapter(tmp_path / "a", lora_factors("l", (6, 5)))
    (adapter / "sub").mkdir()
    for name in ("README.md", "sub/tokens.json", "adapter_model.bin"):
        (adapter / name).write_bytes(name.encode())
    told: list[int] = []
    report = adaptertool.wise(base, adapter, tmp_path / "out", "0,0.5", as_adapter=True, progress=told.append)
    assert sum(told) == report.bytes_written
    assert any("left out" in note and note.endswith(": adapter_model.bin") for note in report.notes)
    manifest = json.loads((tmp_path / "out/alpha-0.500/adaptertool.manifest.json").read_text())
    # No weight of the base is read, so it is not hashed.
    assert manifest["inputs"]["base"]["model.safetensors"] == {"size": (base / "model.safetensors").stat().st_size}
    recipe = manifest["recipe"]
    assert (recipe["command"], recipe["alphas"]) == ("wise --as-adapter", [0.5])
    assert recipe["sources"] == [{"name": "a", "weight": 1.0}]
    found = snapshot(tmp_path / "out" / "alpha-0.500")
    assert (
        set(found) - {"adaptertool.manifest.json"}
        == set(manifest["files"])
        == set(snapshot(adapter)) - {"adapter_model.bin"}
    )
    assert all(found[name] == name.encode() for name in ("README.md", "sub/tokens.json"))
    with pytest.raises(OutputError, match="--force"):
        adaptertool.wise(base, adapter, tmp_path / "out", 1, as_adapter=True)
    adaptertool.wise(base, adapter, tmp_path / "out", 1, as_adapter=True, force=True)
    assert not (tmp_path / "out" / "alpha-0.500").exists()
    for out in (adapter, tmp_path / "x.safetensors"):
        with pytest.raises(UsageError, match=r"overlap|makes a directory"):
            adaptertool.wise(base / "model.safetensors", adapter, out, 1, as_adapter=True)


@pytest.mark.parametrize("dora", [False, True])
def test_the_command_line(tmp_path: Path, dora: bool) -> None:
    """--dry-run writes nothing, and foresees what the run reports."""
    zoo, base = make_base(tmp_path / "base")
    adapter = train(tmp_path / "a", zoo, target_modules=LAYERS, use_dora=dora, bias="all")
    call = ["wise", base, adapter, "-o", tmp_path / "out", "--alpha", "0,0.5", "--as-adapter", "--json"]
    before = snapshot(tmp_path)
    plan = json.loads(command(*call, "--dry-run").stdout)
    assert snapshot(tmp_path) == before and not (tmp_path / "out").exists()
    done = json.loads(command(*call).stdout)
    for field in ("command", "tensors_edited", "tensors_copied", "bytes_read", "bytes_written", "outputs", "alphas"):
        assert plan[field] == done[field], field
    assert done["command"] == "wise --as-adapter"
    assert done["tensors_edited"] == 6 + (2 * len(LAYERS) if dora else 0)
    assert done["tensors_edited"] + done["tensors_copied"] == len(plan["tensors"]) == len(load(adapter))
    assert done["peak_memory"] < plan["memory_predicted"]
    sizes = [len(data) for name, data in snapshot(tmp_path / "out").items() if "manifest" not in name]
    assert done["bytes_written"] == sum(sizes)
    text = command(*call[:-1], "--force").stdout
    assert text.startswith(f"wise --as-adapter {base} + {adapter} at alpha 0, 0.5 -> {tmp_path / 'out'}")
