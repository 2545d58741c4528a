"""scaled: a live PEFT model between its base and itself, without a merge."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_models import MODELS as EXPERTS
from in_memory import TOKENS, llama, tuned_on
from layers import Attention, Zoo
from models import build
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.helpers import rescale_adapter_scale

import adaptertool
from adaptertool.errors import UnsupportedError, UsageError

INPUTS: dict[str, Any] = {
    "linear": torch.randn(3, 12), "turned": torch.randn(3, 10), "embedding": torch.arange(12).reshape(3, 4),
    "conv1": torch.randn(2, 6, 9), "conv2": torch.randn(2, 5, 7, 6), "conv3": torch.randn(2, 3, 4, 5, 6),
}  # fmt: skip
WIDE = {name: x if x.dtype == torch.int64 else x.double() for name, x in INPUTS.items()}


def outputs(model: Any, inputs: dict[str, Any] = WIDE) -> dict[str, torch.Tensor]:
    modules = dict((model.get_base_model() if isinstance(model, PeftModel) else model).named_children())
    return {name: modules[name](x) for name, x in inputs.items()}


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "r": 4}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("alpha", [0, "0.3", 1, 1.5])
def test_every_layer_is_that_of_the_interpolated_weight(tmp_path: Path, options: Any, alpha: Any) -> None:
    model = Zoo().double()
    tuned = tuned_on(model, tmp_path / "a", target_modules=list(INPUTS), **options).double()
    full = outputs(tuned)
    with adaptertool.scaled(tuned, alpha) as scaled, adaptertool.applied(model, tmp_path / "a", alpha):
        assert scaled is tuned
        for name, expected in outputs(model).items():
            assert torch.allclose(outputs(tuned)[name], expected, rtol=1e-6, atol=1e-6), name
    assert all(torch.equal(tensor, full[name]) for name, tensor in outputs(tuned).items())


def test_pefts_own_way_is_wrong_under_dora(tmp_path: Path) -> None:
    model = llama()
    tuned = tuned_on(model, tmp_path / "a", target_modules="all-linear", use_dora=True)
    base = model(TOKENS).logits
    with adaptertool.scaled(tuned, 0):
        assert torch.equal(tuned(TOKENS).logits, base)
    with rescale_adapter_scale(tuned, 0):
        assert not torch.allclose(tuned(TOKENS).logits, base, rtol=1e-2)


@pytest.mark.parametrize("dora", [False, True])
def test_nested_blocks_multiply_and_errors_put_all_back(tmp_path: Path, dora: bool) -> None:
    tuned = tuned_on(llama(), tmp_path / "a", target_modules=["q_proj", "down_proj"], use_dora=dora)
    full = tuned(TOKENS).logits
    with adaptertool.scaled(tuned, 0.3):
        expected = tuned(TOKENS).logits
    with adaptertool.scaled(tuned, 0.5), adaptertool.scaled(tuned, 0.6):
        assert torch.allclose(tuned(TOKENS).logits, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(KeyboardInterrupt), adaptertool.scaled(tuned, 0.5):
        raise KeyboardInterrupt
    assert torch.equal(tuned(TOKENS).logits, full)


@pytest.mark.parametrize("dora", [False, True])
def test_several_active_adapters_and_a_change_of_them(tmp_path: Path, dora: bool) -> None:
    tuned = tuned_on(Zoo().double(), tmp_path / "a", target_modules=["linear"], use_dora=dora)
    tuned.add_adapter("second", LoraConfig(target_modules=["linear", "conv2"], init_lora_weights=False))
    tuned.base_model.set_adapter(["default", "second"])
    inputs = {name: WIDE[name] for name in ("linear", "conv2")}
    full = outputs(tuned, inputs)
    with tuned.disable_adapter():
        base = outputs(tuned, inputs)
    with adaptertool.scaled(tuned, 0.25):
        for name, tensor in outputs(tuned, inputs).items():
            assert torch.allclose(tensor, base[name] + 0.25 * (full[name] - base[name]))
        with tuned.disable_adapter():
            assert all(torch.equal(tensor, base[name]) for name, tensor in outputs(tuned, inputs).items())


def test_gradients_and_dropout(tmp_path: Path) -> None:
    options = {"target_modules": ["linear"], "use_dora": True, "lora_dropout": 0.5}
    tuned = tuned_on(Zoo(), tmp_path / "a", **options).train()
    layer = tuned.base_model.model.linear

    def gradient() -> torch.Tensor:
        torch.manual_seed(1)
        tuned.zero_grad()
        layer(INPUTS["linear"]).sum().backward()
        return layer.lora_B["default"].weight.grad.clone()

    full = gradient()
    with adaptertool.scaled(tuned, 0.25):
        assert torch.allclose(gradient(), 0.25 * full, rtol=1e-5, atol=1e-7)


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    tuned = tuned_on(Zoo(), tmp_path / "a", target_modules=["linear"], use_dora=True).bfloat16()
    x = torch.randn(3, 12).bfloat16()  # of this test's seed: float32 and float64 may round a tie apart
    layer = tuned.base_model.model.linear
    full, base = layer(x).double(), layer.base_layer(x).double()
    with adaptertool.scaled(tuned, 0.3):
        assert torch.equal(layer(x), (base + 0.3 * (full - base)).bfloat16())


def test_experts_and_attention(tmp_path: Path) -> None:
    """What is not linear in its weights: there the change of the weight is scaled, not the output."""
    fields, parameters = EXPERTS["Qwen3MoeForCausalLM"]
    moe = build("Qwen3MoeForCausalLM", fields).eval()  # its kernel has no float64
    tuned = tuned_on(moe, tmp_path / "a", target_modules=[], target_parameters=parameters)
    with adaptertool.scaled(tuned, 0.3), adaptertool.applied(moe, tmp_path / "a", 0.3):
        assert torch.allclose(tuned(TOKENS).logits, moe(TOKENS).logits, rtol=1e-4, atol=1e-5)
    attention, x = Attention().double().eval(), torch.randn(2, 5, 16).double()
    tuned = tuned_on(attention, tmp_path / "b", target_modules=["attn"]).double()
    with adaptertool.scaled(tuned, 0.3), adaptertool.applied(attention, tmp_path / "b", 0.3):
        assert torch.allclose(tuned(x), attention(x), rtol=1e-6, atol=1e-6)


def test_what_cannot_be_scaled_is_refused_by_name() -> None:
    def refused(tuned: Any, why: str) -> None:
        with pytest.raises(UnsupportedError, match=why), adaptertool.scaled(tuned, 0.5):
            pytest.fail("not to be reached")

    def live(**options: Any) -> Any:
        return get_peft_model(llama().float(), LoraConfig(**{"target_modules": ["q_proj"], "r": 2} | options))

    merged = live()
    merged.merge_adapter()
    refused(merged, "is merged, and has nothing to scale")
    refused(live(modules_to_save=["lm_head"]), "lm_head: ModulesToSaveWrapper .* cannot be scaled")
    refused(live(trainable_token_indices=[3]), "embed_tokens: .*Token.* cannot be scaled")
    refused(live(bias="all"), r"trained biases \(bias='all'\)")
    refused(live(init_lora_weights="pissa"), "initialised by pissa, which changes the base")
    refused(live(alora_invocation_tokens=[1, 2], task_type="CAUSAL_LM"), "is a ALoraLinearVariant; only LoRA and DoRA")
    ia3 = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    refused(get_peft_model(llama(), ia3), r"ia3|Linear with the adapter default cannot be scaled")
    refused(get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)), "PROMPT_TUNING")
    for model in (llama(), copy.deepcopy(Zoo())):
        with pytest.raises(UsageError, match="no active adapter"), adaptertool.scaled(model, 0.5):
            pass
    with pytest.raises(UsageError, match="alpha"), adaptertool.scaled(live(), float("nan")):
        pass
    batch = live(use_dora=True).eval()
    batch.add_adapter("plain", LoraConfig(target_modules=["q_proj"], r=2))
    with adaptertool.scaled(batch, 0.5), pytest.raises(UnsupportedError, match="adapter_names"):
        batch(TOKENS, adapter_names=["plain", "__base__"])
