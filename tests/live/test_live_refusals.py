"""Models in memory that an adapter is not for, and weights that cannot be changed in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lora_factors, same_bits, write_adapter
from in_memory import changed, enter, llama, restored, state
from layers import Zoo, make_adapter, make_base
from torch import nn
from torch.nn.utils import parametrize

import adaptertool
from adaptertool.errors import MismatchError, UnsupportedError, UsageError


def test_adapters_for_other_models(tmp_path: Path) -> None:
    model = llama()
    factors = {**lora_factors("model.layers.0.self_attn.q_proj", (16, 16)), **lora_factors("model.lm_heat", (50, 16))}
    missing = (
        r"1 of 2 modules of .* have no tensor in the model \(LlamaForCausalLM\):\n  model\.lm_heat\.weight  nearest"
    )
    with restored(model), pytest.raises(MismatchError, match=missing):
        enter(model, write_adapter(tmp_path / "a", factors))
    with restored(model) as before, adaptertool.applied(model, tmp_path / "a", renames=[r"model\.lm_heat=>lm_head"]):
        assert len(changed(before, model)) == 2
    narrow = write_adapter(tmp_path / "b", lora_factors("lm_head", (48, 16)))
    with pytest.raises(MismatchError, match=r"lm_head\.weight is F64 50×16, so .* must be 50×4"):
        enter(model, narrow)
    rows = {"lm_head.weight": torch.randn(52, 16), "model.embed_tokens.weight": torch.randn(52, 16)}
    with pytest.raises(UnsupportedError, match=r"model\.resize_token_embeddings\(52\) first"):
        enter(model, write_adapter(tmp_path / "c", rows))
    for call in ({"adapter": []}, {"adapter": [narrow], "weights": [1, 2]}, {"adapter": narrow, "alpha": "nan"}):
        with pytest.raises(UsageError), adaptertool.applied(model, **call):  # type: ignore[arg-type]
            pass


class DTensor(torch.Tensor):
    """As torch.distributed.tensor calls it."""


def test_weights_that_cannot_be_changed_in_place(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a", Zoo(), target_modules=["linear"])

    def refused(spoil: Any, why: str) -> None:
        zoo = Zoo()
        spoil(zoo)
        with pytest.raises((UnsupportedError, MismatchError), match=why), adaptertool.applied(zoo, adapter):
            pass

    def hold(tensor: torch.Tensor) -> Any:
        def spoil(zoo: Any) -> None:
            del zoo.linear.weight
            zoo.linear.register_buffer("weight", tensor)

        return spoil

    refused(lambda zoo: zoo.to("meta"), r"linear\.weight cannot be changed in memory: it holds no numbers .*offloaded")
    refused(hold(torch.randn(20, 12).as_subclass(DTensor)), r"sharded \(DTensor\)")
    refused(hold(torch.zeros(20, 12, dtype=torch.int8)), "quantised .*stored as I8")
    refused(hold(torch.zeros(20, 12).to(torch.float8_e4m3fn)), "quantised .*stored as F8_E4M3")
    refused(hold(torch.randn(20, 12).to_sparse()), "layout is torch.sparse_coo")
    refused(hold(torch.randn(1, 12).expand(20, 12)), "shares a part of its memory")
    refused(lambda zoo: parametrize.register_parametrization(zoo.linear, "weight", nn.Identity()), "no tensor in")

    def overlap(zoo: Any) -> None:
        whole = torch.randn(500)
        zoo.linear.weight, zoo.rest.weight = nn.Parameter(whole[:240].view(20, 12)), nn.Parameter(whole[235:244])

    refused(overlap, r"linear\.weight shares a part of its memory with another")


def test_a_weight_replaced_within_the_block_is_an_error(tmp_path: Path) -> None:
    zoo, _ = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear", "turned"])
    before = state(zoo)
    with pytest.raises(MismatchError, match=r"linear\.weight was replaced"), adaptertool.applied(zoo, adapter):
        zoo.linear.weight = nn.Parameter(torch.zeros(20, 12))
    assert same_bits(zoo.turned.weight.detach(), before["turned.weight"][3])  # what can be restored is
    with (
        pytest.raises(MismatchError, match=r"is torch\.float16 and no longer torch\.float32"),
        adaptertool.applied(zoo, adapter),
    ):
        zoo.half()
