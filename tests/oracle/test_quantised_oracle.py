"""Codes as the libraries write them, decoded as they decode them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tensors, load, lora_factors, same_bits, write_adapter, write_checkpoint
from expert_models import gpt_oss_in_codes, train
from models import TEXT
from quantised_bases import Q, X, e4m3, scales
from transformers import GptOssForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import adaptertool as library

BF16, F32 = torch.bfloat16, torch.float32
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


def dense(folder: Path, tensors: Tensors, config: dict[str, Any]) -> torch.Tensor:
    """The weight of X as a merge has it that changes another."""
    plain = {f"{Q}.weight": torch.randn(8, 6).bfloat16()}
    named = {f"{X}.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    base = write_checkpoint(folder / "base", plain | named, config=CONFIG | {"quantization_config": config})
    library.merge(base, [write_adapter(folder / "a", lora_factors(Q, (8, 6)))], folder / "out", dtype="bf16")
    return load(folder / "out")[f"{X}.weight"]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bits_of_bitsandbytes(tmp_path: Path, kind: str, nested: bool) -> None:
    library_of = pytest.importorskip("bitsandbytes.functional")
    codes, state = library_of.quantize_4bit(torch.randn(96, 100).to(BF16), quant_type=kind, compress_statistics=nested)
    tensors = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()} | {"weight": codes}
    found = dense(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert found.equal(library_of.dequantize_4bit(codes, state))


def test_8_bits_of_bitsandbytes(tmp_path: Path) -> None:
    library_of = pytest.importorskip("bitsandbytes.functional")
    codes, sizes, _ = library_of.int8_vectorwise_quant(torch.randn(96, 100).half())
    tensors = {"weight": codes, "SCB": sizes, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    found = dense(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert found.equal(library_of.int8_vectorwise_dequant(codes, sizes).to(BF16))


SCHEMES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "float-quantized": ({"num_bits": 8, "type": "float", "strategy": "channel"}, (1, 1)),
    "int-quantized": ({"num_bits": 8, "type": "int", "strategy": "channel"}, (1, 1)),
    "pack-quantized": ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}, (1, 32)),
    "pack-quantized, 3 bits": ({"num_bits": 3, "type": "int", "strategy": "group", "group_size": 32}, (1, 32)),
    "pack-quantized, zeros": (
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}, (1, 32)),
    "nvfp4-pack-quantized": ({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, (1, 16)),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors(tmp_path: Path, name: str) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    arguments, (_, size) = SCHEMES[name]
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**arguments))
    weight = torch.randn(96, 160).to(BF16)
    groups = 160 // size if size > 1 else 1
    largest = {"float": {8: 448, 4: 6}, "int": {8: 127.5, 4: 7.5, 3: 3.5}}[arguments["type"]][arguments["num_bits"]]
    scale = (weight.view(96, groups, -1).abs().amax(2).float() / largest).to(BF16)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": torch.zeros(96, groups, dtype=torch.int8)}
    if arguments.get("symmetric") is False:
        state["weight_zero_point"] = torch.randint(-8, 8, (96, groups), dtype=torch.int8)
    if "nvfp4" in name:
        whole = 448 * 6 / weight.abs().max().float().reshape(1)
        state |= {"weight_global_scale": whole, "weight_scale": scale.float() * whole}
        del state["weight_zero_point"]
    way = compressors.BaseCompressor.get_value_from_registry(name.partition(",")[0])
    stored = way.compress(state, scheme)
    found = dense(
        tmp_path, stored, {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": arguments}}}
    )
    assert (found.float() - weight.float()).norm() < 0.5 * weight.float().norm()
    assert found.equal(way.decompress(stored, scheme)["weight"].to(BF16))


def test_gpt_oss_as_transformers_has_it(tmp_path: Path) -> None:
    blocks = torch.randint(0, 256, (3, 24, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 130, (3, 24, 2), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    plain = {f"{Q}.weight": torch.randn(8, 6).bfloat16(), f"{name}_bias": torch.randn(3, 24).bfloat16()}
    config = CONFIG | {"quantization_config": {"quant_method": "mxfp4"}}
    tensors = plain | {f"{name}_blocks": blocks, f"{name}_scales": scales}
    base = write_checkpoint(tmp_path / "base", tensors, config=config)
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (8, 6)))
    library.merge(base, [adapter], tmp_path / "out", dtype="bf16")
    found = load(tmp_path / "out")
    assert found.keys() == {*plain, name} and found[name].shape == (3, 64, 24)
    assert found[name].equal(convert_moe_packed_tensors(blocks, scales))


def test_adapter_of_experts_of_gpt_oss(tmp_path: Path) -> None:
    """As onto the checkpoint that transformers makes of the codes; and that loads."""
    dense, quantised, said = gpt_oss_in_codes(tmp_path / "first")
    plain = write_checkpoint(tmp_path / "dense", dense, config=said)
    base = write_checkpoint(
        tmp_path / "base", quantised, config=said | {"quantization_config": {"quant_method": "mxfp4"}}
    )
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = train(GptOssForCausalLM.from_pretrained(plain), tmp_path / "adapter", target_parameters=experts)
    library.merge(base, [adapter], tmp_path / "out", dtype="bf16")
    library.merge(plain, [adapter], tmp_path / "plain")
    found, expected = load(tmp_path / "out"), load(tmp_path / "plain")
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], expected[name]) for name in expected)
    assert not found["model.layers.0.mlp.experts.down_proj"].equal(dense["model.layers.0.mlp.experts.down_proj"])
    loaded = GptOssForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == BF16 and loaded.model.layers[1].mlp.experts.gate_up_proj.equal(
        found["model.layers.1.mlp.experts.gate_up_proj"]
    )
    attention = train(
        GptOssForCausalLM.from_pretrained(plain), tmp_path / "attention", target_modules=["q_proj", "o_proj"]
    )
    library.merge(base, [attention], tmp_path / "codes")  # edits nothing that is quantised: no --dtype is needed
    kept = load(tmp_path / "codes")
    assert all(same_bits(kept[name], quantised[name]) for name in quantised if "experts" in name)


def test_what_is_written_loads(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=False)).to(BF16)
    model.save_pretrained(tmp_path / "first")
    tensors = load(tmp_path / "first")
    for name in [name for name in tensors if "_proj" in name]:
        tensors |= {name: e4m3(*tensors[name].shape), f"{name}_scale_inv": scales(1, 1)}
        tensors[f"{name.removesuffix('weight')}input_scale"] = torch.ones(1)
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    base = write_checkpoint(tmp_path / "base", tensors, config=config, shards=3)
    adapter = train(model, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    library.merge(base, [adapter], tmp_path / "out", dtype="bf16", verify=True)
    loaded, report = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and loaded.dtype == BF16
    assert getattr(loaded.config, "quantization_config", None) is None
    assert loaded.state_dict()["model.layers.1.mlp.up_proj.weight"].equal(
        load(tmp_path / "out")["model.layers.1.mlp.up_proj.weight"]
    )
