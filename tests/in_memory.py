"""Models in memory: their bits before and after, and live PEFT models with random factors."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import same_bits
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptertool

State = dict[str, tuple[int, int, int, torch.Tensor]]


def state(model: nn.Module) -> State:
    """Every parameter and buffer, under every name: which object, at which address, with which bits."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: (id(t), t.data_ptr(), t.requires_grad, t.detach().contiguous().clone()) for name, t in named}


def assert_same(before: State, model: nn.Module) -> None:
    after = state(model)
    assert before.keys() == after.keys()
    for name, (*who, tensor) in after.items():
        assert who == list(before[name][:3]), name
        assert same_bits(tensor, before[name][3]), name


def changed(before: State, model: nn.Module) -> set[str]:
    return {name for name, (*_, tensor) in state(model).items() if not same_bits(tensor, before[name][3])}


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[State]:
    before = state(model)
    yield before
    assert_same(before, model)


def enter(*arguments: Any, **options: Any) -> None:
    """A block with nothing in it."""
    with adaptertool.applied(*arguments, **options):
        pass


def near(got: torch.Tensor, base: torch.Tensor, exact: torch.Tensor) -> bool:
    """Within what the precision promises, for the small numbers and ranks of these tests."""
    unit = 2.0**-24 if got.element_size() == 2 else 2.0**-53
    ulp = 2.0 ** (torch.floor(torch.log2(exact.abs().clamp(min=2.0**-14))) - {2: 10, 4: 23}[got.element_size()])
    ulp *= 8 if got.dtype == torch.bfloat16 else 1
    bound = torch.maximum(ulp, 32 * unit * (base.double().abs() + exact.abs() + 4))
    return bool(((got.double() - exact).abs() <= bound).all())


def llama(**options: Any) -> Any:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, **options
    )
    return LlamaForCausalLM(config).double().eval()


def tuned_on(model: Any, folder: Path, **options: Any) -> Any:
    """A live PEFT model with random factors, and its adapter in `folder`."""
    with pytest.warns() if options.get("ensure_weight_tying") else contextlib.nullcontext():
        tuned = get_peft_model(copy.deepcopy(model), LoraConfig(**{"r": 2, "init_lora_weights": False} | options))
    with torch.no_grad():
        for parameter in {id(p): p for p in tuned.parameters() if p.requires_grad}.values():
            parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return tuned.eval()


TOKENS = torch.arange(12).reshape(2, 6) * 5 % 50
