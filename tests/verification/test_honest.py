"""Honest merges, in any of the usual recipes, are never called wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from candidates import BF16, F16, F32, SHAPES, Place, Tensors, a_base, delta, factors_of, naive
from conftest import FIXTURES, write_adapter, write_checkpoint

from adaptertool.tasks.verify import verify

# --- honest variations: never called wrong ---


def rounded_delta(place: Place) -> Tensors:
    return place.tensors | {n: place.tensors[n] + delta(place.factors, n).to(BF16) for n in SHAPES}


def narrow_factors(place: Place) -> Tensors:
    narrow = {name: factor.to(BF16) for name, factor in place.factors.items()}
    merged = dict(place.tensors)
    for name in SHAPES:
        module = name.removesuffix(".weight")
        product = narrow[f"{module}.lora_B.weight"] @ narrow[f"{module}.lora_A.weight"]
        merged[name] = place.tensors[name] + 2.0 * product
    return merged


def through_float64(place: Place) -> Tensors:
    return place.tensors | {n: (place.tensors[n].double() + delta(place.factors, n)).to(BF16) for n in SHAPES}


def kept_in_float32(place: Place) -> Tensors:
    wide = {name: tensor.float() for name, tensor in place.tensors.items()}
    return wide | {name: wide[name] + delta(place.factors, name).float() for name in SHAPES}


def cast(place: Place, dtype: torch.dtype) -> Tensors:
    return {name: tensor.to(dtype) for name, tensor in kept_in_float32(place).items()}


HONEST: dict[str, Callable[[Place], Tensors]] = {
    "float32": lambda place: naive(place.tensors, place.factors),
    "delta rounded first": rounded_delta,
    "factors in bf16": narrow_factors,
    "float64, rounded twice": through_float64,
    "stored as float32, merged in bf16": lambda place: {
        name: tensor.float() for name, tensor in naive(place.tensors, place.factors).items()
    },
    "another order of tensors": lambda place: dict(reversed(naive(place.tensors, place.factors).items())),
}


@pytest.mark.parametrize("recipe", HONEST)
def test_honest(place: Place, recipe: str) -> None:
    report = place.judge(HONEST[recipe](place))
    assert report.ok, report.tensors
    assert report.summary.exact + report.summary.rounding == len(SHAPES) + 2


@pytest.mark.parametrize(("dtype", "name"), [(F32, "float32"), (F16, "float16")])
def test_honest_cast_that_the_config_declares(place: Place, dtype: torch.dtype, name: str) -> None:
    config = {"model_type": "llama", "dtype": name, "tie_word_embeddings": False}
    assert place.judge(cast(place, dtype), config=config).ok
    undeclared = place.judge(cast(place, F16), config=config | {"dtype": "bfloat16"})
    assert undeclared.summary.diagnosis == ("dtype-changed",) and not undeclared.ok


@pytest.mark.parametrize("shards", [2, 5])
def test_honest_resharded(place: Place, shards: int) -> None:
    assert place.judge(naive(place.tensors, place.factors), shards=shards).ok


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("size", [1e-3, 0.02, 0.3])
def test_honest_two_adapters_with_a_rounding_each(tmp_path: Path, dtype: torch.dtype, size: float) -> None:
    place = Place(tmp_path, dtype)
    first, second = factors_of(3, 8, size), factors_of(4, 2, size)
    paths = [
        write_adapter(tmp_path / "first", first, r=8, lora_alpha=16),
        write_adapter(tmp_path / "second", second, r=2, lora_alpha=4),
    ]
    report = place.judge(naive(naive(place.tensors, first), second), *paths)
    assert report.ok, report.tensors
    if size > 0.01:
        wrong = place.judge(naive(place.tensors, first), *paths)
        assert not wrong.ok and wrong.summary.diagnosis == ("not-applied",)
        assert all("adapter 2" in t.detail for t in wrong.tensors if t.status == "wrong")


def test_strict_wants_the_bits(place: Place) -> None:
    merged = rounded_delta(place)
    assert place.judge(merged).summary.rounding > 0
    assert not place.judge(merged, strict=True).ok


def peft_merged(adapter: Path, out: Path, dtype: torch.dtype, *, safe: bool = False, narrow: bool = False) -> Path:
    model = transformers.AutoModelForCausalLM.from_pretrained(FIXTURES / "base", dtype=dtype)
    wrapped = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=not narrow)
    if narrow:
        wrapped.to(dtype)
    wrapped.merge_and_unload(safe_merge=safe).save_pretrained(out)
    return out


@pytest.mark.parametrize("adapter", ["lora", "rslora"])
@pytest.mark.parametrize("how", [{}, {"safe": True}, {"narrow": True}])
def test_honest_merges_of_peft(tmp_path: Path, adapter: str, how: dict[str, bool]) -> None:
    path = peft_merged(FIXTURES / adapter, tmp_path / "out", BF16, **how)
    report = verify(path, FIXTURES / "base", [FIXTURES / adapter])
    assert report.ok, [tensor for tensor in report.tensors if tensor.status not in ("exact", "rounding")]


@pytest.mark.parametrize("dtype", [F32, F16])
def test_honest_merges_of_peft_in_another_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    path = peft_merged(FIXTURES / "lora", tmp_path / "out", dtype)
    assert verify(path, FIXTURES / "base", [FIXTURES / "lora"]).ok


@pytest.mark.parametrize("narrow", [False, True])
def test_honest_dora_of_peft(tmp_path: Path, narrow: bool) -> None:
    adapter = a_dora(tmp_path)
    path = peft_merged(adapter, tmp_path / "out", BF16, narrow=narrow)
    report = verify(path, FIXTURES / "base", [adapter])
    assert report.ok, [tensor for tensor in report.tensors if tensor.status not in ("exact", "rounding")]


def a_dora(root: Path) -> Path:
    model = transformers.AutoModelForCausalLM.from_pretrained(FIXTURES / "base", dtype=BF16)
    config = peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    torch.manual_seed(5)
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
        elif "lora_" in name:
            parameter.data *= 0.2
    wrapped.save_pretrained(root / "dora")
    return root / "dora"


@pytest.mark.long
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_honest_interpolations(tmp_path: Path, dtype: torch.dtype, alpha: float) -> None:
    torch.manual_seed(7)
    base = a_base(dtype)
    tuned = {name: (t.float() + 0.01 * torch.randn(t.shape)).to(dtype) for name, t in base.items()}
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned)
    ways = {
        "terms": {n: (1 - alpha) * base[n] + alpha * tuned[n] for n in base},
        "lerp": {n: torch.lerp(base[n], tuned[n], alpha) for n in base},
        "difference": {n: base[n] + alpha * (tuned[n] - base[n]) for n in base},
        "float32": {n: (base[n].float() + alpha * (tuned[n].float() - base[n].float())).to(dtype) for n in base},
    }
    for way, tensors in ways.items():
        merged = write_checkpoint(tmp_path / way, tensors)
        assert verify(merged, tmp_path / "base", [tmp_path / "tuned"], alpha=alpha).ok, way
    for wrong in (base, tuned):
        merged = write_checkpoint(tmp_path / "wrong", wrong)
        assert not verify(merged, tmp_path / "base", [tmp_path / "tuned"], alpha=alpha).ok


def test_honest_ends_that_are_tied(tmp_path: Path) -> None:
    """The head may be stored beside the embedding that it is tied to, or not."""
    names = {"model.embed_tokens.weight": torch.randn(32, 16).to(BF16), "model.norm.weight": torch.ones(16).to(BF16)}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    base = write_checkpoint(tmp_path / "base", names, config=config)
    with_head = names | {"lm_head.weight": names["model.embed_tokens.weight"].clone()}
    both = write_checkpoint(tmp_path / "both", with_head, config=config)
    assert verify(both, base).ok
    assert verify(base, both).ok
    with_head["lm_head.weight"][3, 4] += 1
    other = write_checkpoint(tmp_path / "other", with_head, config=config)
    assert not verify(other, base).ok


def test_honest_without_the_buffers_of_old_checkpoints(tmp_path: Path) -> None:
    tensors = a_base(BF16)
    buffers = {"layers.0.rotary_emb.inv_freq": torch.ones(8), "h.0.attn.bias": torch.ones(1, 1, 4, 4)}
    base, old = write_checkpoint(tmp_path / "base", tensors), write_checkpoint(tmp_path / "old", tensors | buffers)
    for merged, other in ((base, old), (old, base)):
        report = verify(merged, other)
        assert report.ok and any("2 buffers" in note for note in report.notes)
