"""Adapters beside the weights, as at inference: the outputs are those of PEFT's own unmerged layers."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, lora_factors, write_adapter
from in_memory import restored
from layers import LAYERS, Zoo, make_adapter, make_base
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

import adaptertool
from adaptertool.errors import UnsupportedError, UsageError

INPUTS: dict[str, Any] = {
    "linear": torch.randn(2, 3, 12),
    "turned": torch.randn(2, 3, 10),
    "embedding": torch.arange(12).reshape(2, 6),
    "conv1": torch.randn(2, 6, 9),
    "conv2": torch.randn(5, 8, 8),  # without a batch
    "conv3": torch.randn(2, 3, 4, 5, 6),
}
TOKENS = torch.arange(40).reshape(2, 20)


@pytest.fixture(scope="module")
def trained() -> Any:
    return AutoModelForCausalLM.from_pretrained(FIXTURES / "base")


def unmerged(model: nn.Module, *adapters: Path) -> Any:
    """PEFT's, in float64, all of them active."""
    names = [f"adapter{number}" for number in range(len(adapters))]
    tuned = PeftModel.from_pretrained(copy.deepcopy(model), adapters[0], names[0], autocast_adapter_dtype=False)
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        tuned.load_adapter(adapter, name, autocast_adapter_dtype=False)
    tuned.base_model.set_adapter(names)
    return tuned.double()


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer(tmp_path: Path, layer: str, dora: bool) -> None:
    zoo, _ = make_base(tmp_path / "base", torch.float64)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=[layer], use_dora=dora, use_rslora=True)
    x = INPUTS[layer] if layer == "embedding" else INPUTS[layer].double()
    peft: Any = unmerged(zoo, adapter).base_model.model
    # PEFT's convolution with DoRA cannot do without a batch
    expected = peft.conv2(x[None])[0] if layer == "conv2" else getattr(peft, layer)(x)
    module = getattr(zoo, layer)
    plain = module(x)
    with restored(zoo), adaptertool.attached(zoo, adapter):
        got = module(x)
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(got, plain, rtol=1e-3)
    assert module(x).equal(plain)


@pytest.mark.parametrize("dora", [False, True])
def test_logits(tmp_path: Path, trained: Any, dora: bool) -> None:
    modules = ["q_proj", "down_proj", "embed_tokens", "lm_head"]
    adapter = make_adapter(tmp_path / "a", trained, target_modules=modules, use_dora=dora)
    model = copy.deepcopy(trained).double()
    expected = unmerged(model, adapter)(TOKENS).logits
    with restored(model), adaptertool.attached(model, adapter) as same:
        assert same is model
        assert torch.allclose(model(TOKENS).logits, expected, rtol=1e-10, atol=1e-10)


def test_saved_modules_and_patterns(trained: Any) -> None:
    model = copy.deepcopy(trained).double()
    expected = unmerged(model, FIXTURES / "rslora")(TOKENS).logits
    with restored(model), adaptertool.attached(model, FIXTURES / "rslora"):
        assert torch.allclose(model(TOKENS).logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dora", [False, True])
def test_biases(tmp_path: Path, dora: bool) -> None:
    config = GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    adapter = make_adapter(tmp_path / "a", model, target_modules=["c_attn", "c_fc"], use_dora=dora, bias="all")
    expected = unmerged(model, adapter)(TOKENS).logits
    with restored(model), adaptertool.attached(model, adapter):
        assert torch.allclose(model(TOKENS).logits, expected, rtol=1e-9, atol=1e-9)


def test_bias_of_the_second_factor(tmp_path: Path, trained: Any) -> None:
    model = copy.deepcopy(trained).double()
    for name in ("q_proj", "o_proj"):
        for layer in model.model.layers:
            linear = getattr(layer.self_attn, name)
            linear.bias = nn.Parameter(torch.randn(linear.out_features, dtype=torch.float64))
    adapter = make_adapter(tmp_path / "a", model, target_modules=["q_proj", "o_proj"], lora_bias=True)
    expected = unmerged(model, adapter)(TOKENS).logits
    with restored(model), adaptertool.attached(model, adapter):
        assert torch.allclose(model(TOKENS).logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("compose", ["sequential", "mixed"])
def test_several_adapters(tmp_path: Path, trained: Any, compose: str) -> None:
    """Mixed as PEFT has several active ones; sequential as the weights that `applied` makes."""
    model = copy.deepcopy(trained).double()
    kinds = {"a": False, "b": True, "c": True}
    adapters = [
        make_adapter(tmp_path / name, trained, target_modules=["q_proj", "up_proj"], use_dora=dora)
        for name, dora in kinds.items()
    ]
    if compose == "mixed":
        expected = unmerged(model, *adapters)(TOKENS).logits
    else:
        with adaptertool.applied(model, adapters):
            expected = model(TOKENS).logits
    with restored(model), adaptertool.attached(model, adapters, compose=compose):
        assert torch.allclose(model(TOKENS).logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dora", [False, True])
def test_weights_move_part_of_the_way(tmp_path: Path, trained: Any, dora: bool) -> None:
    model = copy.deepcopy(trained).double()
    adapter = make_adapter(tmp_path / "a", trained, target_modules=["q_proj", "embed_tokens"], use_dora=dora)
    with adaptertool.applied(model, adapter, weights=["-0.3"]):
        expected = model(TOKENS).logits
    with restored(model), adaptertool.attached(model, adapter, weights=["-0.3"]):
        assert torch.allclose(model(TOKENS).logits, expected, rtol=1e-9, atol=1e-9)


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    linear = nn.Sequential(nn.Linear(64, 48)).bfloat16()
    adapter = write_adapter(tmp_path / "a", lora_factors("0", (48, 64)), target_modules=["0"])
    x = torch.randn(5, 64).bfloat16()
    exact = unmerged(linear.double(), adapter)(x.double())
    linear = linear.bfloat16()
    plain = linear(x)
    with adaptertool.attached(linear, adapter):
        got = linear(x)
    delta = exact - linear.double()(x.double())
    assert got.dtype == torch.bfloat16
    assert (got.double() - (plain.double() + delta)).abs().max() <= 2**-8 * exact.abs().max() * 1.01


def test_fused_projections(tmp_path: Path) -> None:
    config = Phi3Config(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    model = Phi3ForCausalLM(config).double().eval()
    adapter = make_adapter(tmp_path / "a", model, target_modules=["qkv_proj", "gate_up_proj"], use_dora=True)
    expected = unmerged(model, adapter)(TOKENS).logits
    with restored(model), adaptertool.attached(model, adapter):
        assert torch.allclose(model(TOKENS).logits, expected, rtol=1e-9, atol=1e-9)


def test_scaled_embedding(tmp_path: Path) -> None:
    model = nn.Sequential(Gemma3TextScaledWordEmbedding(20, 8, 0, embed_scale=2.5)).double()
    adapter = make_adapter(tmp_path / "a", model, target_modules=["0"])
    ids = torch.arange(20)
    expected = unmerged(model, adapter)(ids)
    with adaptertool.attached(model, adapter):
        assert torch.allclose(model(ids), expected, rtol=1e-9, atol=1e-9)


def test_tied_ends(tmp_path: Path) -> None:
    """The adapter of the embedding does not act on the head that shares its weight."""
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    adapter = make_adapter(tmp_path / "a", model, target_modules=["embed_tokens"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = unmerged(model, adapter)(TOKENS).logits
        with restored(model), adaptertool.attached(model, adapter):
            assert model.lm_head.weight is model.model.embed_tokens.weight
            assert torch.allclose(model(TOKENS).logits, expected, rtol=1e-9, atol=1e-9)


class Odd(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_a_layer_with_a_forward_of_its_own_is_merged_in_memory(tmp_path: Path) -> None:
    model = nn.Sequential(Odd(12, 20)).double()
    adapter = write_adapter(tmp_path / "a", lora_factors("0", (20, 12)))
    x = torch.randn(3, 12).double()
    with adaptertool.applied(model, adapter):
        expected = model(x)
    with restored(model), pytest.warns(UserWarning, match="1 weights are merged in memory.*: 0.weight"):  # noqa: SIM117
        with adaptertool.attached(model, adapter):
            assert torch.allclose(model(x), expected, rtol=1e-12)


class Chosen(nn.Module):
    """Of several layers it calls the first only, as one that is chosen among experts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers[0](x)
        return result


def test_layers_that_are_not_called_are_told(tmp_path: Path) -> None:
    factors = {**lora_factors("layers.0", (4, 4)), **lora_factors("layers.1", (4, 4))}
    model, adapter = Chosen(), write_adapter(tmp_path / "a", factors)
    with pytest.warns(UserWarning, match=r"no part in 1 of 2 layers, which the model did not call: layers\.1\.weight"):  # noqa: SIM117
        with adaptertool.attached(model, adapter):
            model(torch.randn(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adaptertool.attached(model, adapter):
            pass  # never run


def test_twice_at_once_is_refused_and_an_exception_detaches(tmp_path: Path) -> None:
    zoo = Zoo()
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear"])
    x, linear = torch.randn(2, 12), zoo.linear
    plain = linear(x)
    for inner in (adaptertool.attached, adaptertool.applied):
        with adaptertool.attached(zoo, adapter), pytest.raises(UsageError, match="applied to these weights already"):
            inner(zoo, adapter).__enter__()
    with restored(zoo), pytest.raises(ZeroDivisionError), adaptertool.attached(zoo, adapter):
        _ = 1 / 0
    assert linear(x).equal(plain)
    with pytest.raises(UsageError, match="compose is"), adaptertool.attached(zoo, adapter, compose="both"):
        pass
    active = get_peft_model(Zoo(), LoraConfig(target_modules=["linear"]))
    with pytest.raises(UnsupportedError, match="active"), adaptertool.attached(active, adapter):
        pass
