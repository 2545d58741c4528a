"""Variants of LoRA that come down to LoRA, against PEFT's own merge in float64 and its layers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, write_adapter, write_checkpoint
from layers import DTYPES, check, make_adapter, make_base, peft_merge
from oracle import half_ulp_excess
from peft import LoraConfig, PeftModel
from peft.tuners.lora.config import BdLoraConfig, EvaConfig, MontecloraConfig, VeloraConfig
from peft_files import UNTIED

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

VARIANTS: dict[str, dict[str, Any]] = {
    "A in blocks": {"use_bdlora": BdLoraConfig(target_modules_bd_a=["lin"], nblocks=2)},
    "B in blocks": {"use_bdlora": BdLoraConfig(target_modules_bd_b=["linear"], nblocks=4)},
    "one block": {"use_bdlora": BdLoraConfig(target_modules_bd_a=["linear"], nblocks=1)},
    "in blocks, but no layer": {
        "use_bdlora": BdLoraConfig(target_modules_bd_a=["x"], nblocks=4, match_strict=False), "use_rslora": True},
    "VeLoRA": {"velora_config": VeloraConfig(num_groups=3)},
    "MonteCLoRA": {"monteclora_config": MontecloraConfig(num_samples=3, buffer_size=2)},
    "MiCA": {"init_lora_weights": "mica"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}  # fmt: skip


def exactly(zoo: torch.nn.Module, adapter: Path) -> dict[str, torch.Tensor]:
    """PEFT's merge in float64, loaded in float32: some initialisers take nothing wider."""
    tuned: Any = PeftModel.from_pretrained(copy.deepcopy(zoo).float(), adapter)
    return tuned.double().merge_and_unload().state_dict()


def variant(folder: Path, zoo: torch.nn.Module, name: str, layer: str = "linear") -> Path:
    return make_adapter(folder, zoo, target_modules=[layer], r=4, **VARIANTS[name])


@pytest.mark.long("name")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_merge_is_that_of_peft(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    zoo, base = make_base(tmp_path / "base", dtype)
    adapter = variant(tmp_path / "a", zoo, name)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    check(base, tmp_path / "out", exactly(zoo, adapter), 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_merged_weight_is_what_the_layer_does(tmp_path: Path, name: str) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapter = variant(tmp_path / "a", zoo, name)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    inputs = torch.randn(7, 12).double()
    tuned: Any = PeftModel.from_pretrained(copy.deepcopy(zoo), adapter).double().eval()
    weight, bias = (load(tmp_path / "out")[f"linear.{what}"].double() for what in ("weight", "bias"))
    torch.testing.assert_close(tuned.base_model.model.linear(inputs), inputs @ weight.T + bias, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", ["turned", "embedding"])
def test_mica_on_other_layers(tmp_path: Path, layer: str) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = variant(tmp_path / "a", zoo, "MiCA", layer)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    check(base, tmp_path / "out", exactly(zoo, adapter), 1)


def test_eva_leaves_the_base_alone_and_writes_its_ranks_and_scales(tmp_path: Path) -> None:
    """As initialize_lora_eva_weights leaves the config: ranks and alphas by layer."""
    zoo, base = make_base(tmp_path / "base")
    given = {"rank_pattern": {"linear": 2}, "alpha_pattern": {"linear": 2.5}}
    fields = {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0), **given}
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear"], **fields)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    check(base, tmp_path / "out", exactly(zoo, adapter), 1)


@pytest.mark.parametrize("name", ["A in blocks", "B in blocks", "VeLoRA"])
def test_between_in_a_chain_and_by_other_commands(tmp_path: Path, name: str) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapter = variant(tmp_path / "a", zoo, name)
    plain = make_adapter(tmp_path / "b", zoo, target_modules=["linear", "conv2"])
    before, exact = load(base)["linear.weight"].double(), peft_merge(zoo, adapter)["linear.weight"]
    both = peft_merge(zoo, adapter, plain)["linear.weight"]
    adaptertool.merge(base, [adapter], tmp_path / "half", weights=[0.5])
    adaptertool.wise(base, adapter, tmp_path / "wise", [0.5])
    adaptertool.merge(base, [adapter, plain], tmp_path / "two")
    adaptertool.wise(base, adapter, tmp_path / "as", [0.5], as_adapter=True)
    adaptertool.merge(base, [tmp_path / "as"], tmp_path / "as_half")
    adaptertool.sum_adapters([adapter, plain], tmp_path / "sum", weights=[1, 1])
    adaptertool.merge(base, [tmp_path / "sum"], tmp_path / "summed")
    adaptertool.truncate(adapter, tmp_path / "cut", rank=4)
    adaptertool.merge(base, [tmp_path / "cut"], tmp_path / "whole")
    half = before + (exact - before) / 2
    for out, value in {"half": half, "wise": half, "as_half": half, "two": both, "whole": exact}.items():
        assert half_ulp_excess(load(tmp_path / out)["linear.weight"], value).max() <= 1 + 1e-6, out
    for made in ("as", "sum", "cut"):  # PEFT reads them as we do
        again = peft_merge(zoo, tmp_path / made)["linear.weight"]
        torch.testing.assert_close(again, {"as": half, "sum": both, "cut": exact}[made], rtol=1e-6, atol=1e-7)
    assert adaptertool.verify(tmp_path / "half", base, [adapter], weights=[0.5]).ok
    assert not adaptertool.verify(tmp_path / "half", base, [adapter]).ok
    report = adaptertool.inspect(adapter, base)
    assert report.refusal is None and report.adapter.modules[0].spectrum is not None
    assert adaptertool.drift(base, [adapter]).modules


def test_what_training_left_is_said_and_counted_apart(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = variant(tmp_path / "a", zoo, "MonteCLoRA")
    report = adaptertool.merge(base, [adapter], tmp_path / "out")
    assert any("4 tensors that MonteCLoRA used in training play no part" in note for note in report.notes)


def test_what_training_left_is_refused_where_the_config_does_not_announce_it(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = variant(tmp_path / "a", zoo, "VeLoRA")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"velora_config": None}))
    with pytest.raises(UnsupportedError, match=r"linear\.lora_velora_embed: this factor is not known"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


L = "model.layers.0.mlp.up"


def blocked(folder: Path, a: tuple[int, ...], b: tuple[int, ...], **fields: Any) -> Path:
    factors = {f"{L}.lora_A.weight": torch.randn(a), f"{L}.lora_B.weight": torch.randn(b)}
    return write_adapter(folder, factors, **fields)


@pytest.mark.parametrize(
    ("a", "b", "value", "error", "words"),
    [
        ((4, 6), (6, 4), {"nblocks": 2, "target_modules_bd_a": ["up"]}, MismatchError, "but it is F64 4×12"),
        ((4, 3), (6, 4), {"nblocks": 2, "target_modules_bd_a": ["q"]}, MismatchError, "but it is F32 4×3"),
        ((4, 6), (6, 2), {"nblocks": 4, "target_modules_bd_b": ["up"]}, InputError, "which 4 blocks cannot make"),
        ((4, 2), (6, 4), {"nblocks": 3, "target_modules_bd_a": ["up"]}, InputError, "which 3 blocks cannot make"),
        ((4, 3), (6, 4), {"nblocks": 2, "target_modules_bd_a": ["up"], "target_modules_bd_b": ["mlp"]}, InputError,
         "for both factors"),
        ((4, 3), (6, 4), True, InputError, "must be an object"),
        ((4, 3), (6, 4), {"nblocks": 2, "new": 1}, InputError, "must be an object with"),
        *(((4, 3), (6, 4), {"nblocks": value}, InputError, "must be a whole number") for value in (0, "2", 2.0, True)),
        ((4, 3), (6, 4), {"nblocks": 2, "target_modules_bd_a": "up"}, InputError, "must be a list of names"),
    ],
)  # fmt: skip
def test_blocks_that_cannot_be(
    tmp_path: Path, a: tuple[int, ...], b: tuple[int, ...], value: Any, error: type[InputError], words: str
) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{L}.weight": torch.zeros(6, 6)}, config=UNTIED)
    with pytest.raises(error, match=words):
        adaptertool.merge(base, [blocked(tmp_path / "a", a, b, use_bdlora=value)], tmp_path / "out")


@pytest.mark.parametrize("field", ["use_dora", "lora_bias"])
def test_blocks_beside_what_they_do_not_go_with(tmp_path: Path, field: str) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{L}.weight": torch.zeros(6, 6)}, config=UNTIED)
    adapter = blocked(tmp_path / "a", (4, 3), (6, 4), use_bdlora={"nblocks": 2}, **{field: True})
    with pytest.raises(UnsupportedError, match=f"use_bdlora together with {field}"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_blocks_on_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    """The rows of lora_B are cut after it is whole: which block they lie in depends on where they are."""
    heads = {"num_key_value_heads": 2, "num_attention_heads": 2, "head_dim": 4, "hidden_size": 8}
    config = UNTIED | {"model_type": "phi3", **heads}
    name = "model.layers.0.self_attn"
    base = write_checkpoint(tmp_path / "base", {f"{name}.qkv_proj.weight": torch.randn(24, 8)}, config=config)
    b, a = torch.randn(24, 2), torch.randn(4, 8)
    factors = {f"{name}.qkv_proj.lora_A.weight": a, f"{name}.qkv_proj.lora_B.weight": b}
    value = {"nblocks": 2, "target_modules_bd_b": ["qkv_proj"]}
    adaptertool.merge(base, [write_adapter(tmp_path / "a", factors, use_bdlora=value)], tmp_path / "out")
    whole = torch.block_diag(*b.chunk(2)).double()
    exact = load(base)[f"{name}.qkv_proj.weight"].double() + 2 * whole @ a.double()
    assert half_ulp_excess(load(tmp_path / "out")[f"{name}.qkv_proj.weight"], exact).max() <= 1 + 1e-6
    split = write_checkpoint(
        tmp_path / "split", {f"{name}.{part}_proj.weight": torch.randn(8, 8) for part in "qkv"},
        config=UNTIED | {"model_type": "llama"})  # fmt: skip
    adaptertool.merge(split, [tmp_path / "a"], tmp_path / "apart")
    for number, part in enumerate("qkv"):
        own = load(split)[f"{name}.{part}_proj.weight"].double() + (2 * whole @ a.double())[8 * number : 8 * number + 8]
        assert half_ulp_excess(load(tmp_path / "apart")[f"{name}.{part}_proj.weight"], own).max() <= 1 + 1e-6


def test_fields_of_variants_are_those_of_peft() -> None:
    assert LoraConfig(use_bdlora={"nblocks": 2}).use_bdlora == BdLoraConfig(nblocks=2)
    assert BdLoraConfig().__dict__.keys() == {"nblocks", "target_modules_bd_a", "target_modules_bd_b", "match_strict"}
