"""Codes that are made anew: the libraries load them, and read them as we do. Experts, as models have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, lora_factors, same_bits, write_adapter, write_checkpoint
from expert_models import gpt_oss_in_codes, train
from models import TEXT
from quantised_bases import E2M1, Q, X, e4m3, nibbles, scales
from transformers import FineGrainedFP8Config, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import adaptertool as library

BF16 = torch.bfloat16
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    """Beside the dense merge of the same in float32: each code is the nearest, in the other orientation; and its
    checkpoint loads."""
    plain, quantised, said = gpt_oss_in_codes(tmp_path / "first")
    dense = write_checkpoint(tmp_path / "dense", plain, config=said)
    said |= {"quantization_config": {"quant_method": "mxfp4"}}
    base = write_checkpoint(tmp_path / "base", quantised, config=said, shards=3)
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = train(GptOssForCausalLM.from_pretrained(dense), tmp_path / "adapter", target_parameters=targets)
    weights = [4.0]
    library.merge(base, [adapter], tmp_path / "out", weights=weights, quantise="keep")
    library.merge(base, [adapter], tmp_path / "exact", weights=weights, dtype="f32")
    found, exact = load(tmp_path / "out"), load(tmp_path / "exact")
    assert found.keys() == quantised.keys()
    moved = rescaled = 0
    for name in [name for name in quantised if name.endswith("_blocks")]:
        bare = name.removesuffix("_blocks")
        was, now = (quantised[f"{bare}_scales"].int(), found[f"{bare}_scales"].int())
        moved += int((found[name] != quantised[name]).sum())
        rescaled += int((was != now).sum())
        wanted = exact[bare].transpose(1, 2)  # (E, out, in)
        groups = wanted.reshape(*wanted.shape[:2], -1, 32).double()
        largest = groups.abs().amax(3)
        held = largest <= 7.0 * 2.0 ** (was - 127)
        assert now[held].equal(was[held]) and (largest <= 6.0 * 2.0 ** (now - 127))[~held].all()
        assert (largest > 3.0 * 2.0 ** (now - 127))[~held].all()
        table = torch.tensor([float(value) for value in E2M1], dtype=torch.float64)
        size = 2.0 ** (now.double() - 127)
        codes = torch.tensor(nibbles(found[name].reshape(-1, 16))).reshape(*groups.shape)
        least = (groups[..., None] - table * size[..., None, None]).abs().amin(4)
        off = (groups - table[codes] * size[..., None]).abs()
        assert (off <= least + 1e-7 * largest[..., None]).all()
    assert moved and rescaled
    assert all(same_bits(found[name], quantised[name]) for name in quantised if "experts" not in name)
    loaded = GptOssForCausalLM.from_pretrained(tmp_path / "out", dtype=BF16)
    name = "model.layers.1.mlp.experts.down_proj"
    assert loaded.get_parameter(name).equal(
        convert_moe_packed_tensors(found[f"{name}_blocks"], found[f"{name}_scales"])
    )


def test_fp8_loads(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=False)).to(BF16)
    model.save_pretrained(tmp_path / "first")
    tensors = load(tmp_path / "first")
    for name in [name for name in tensors if "_proj" in name]:
        tensors |= {name: e4m3(*tensors[name].shape), f"{name}_scale_inv": scales(1, 1)}
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    base = write_checkpoint(tmp_path / "base", tensors, config=config, shards=3)
    adapter = train(model, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    report = library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    assert report.kept is not None and [one.family for one in report.kept] == ["MLP", "attention", None]
    found = load(tmp_path / "out")
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == one.dtype and found[name].shape == one.shape for name, one in tensors.items())
    library.merge(base, [adapter], tmp_path / "dense", dtype="f32")
    read = {"quantization_config": FineGrainedFP8Config(dequantize=True), "dtype": torch.float32}
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out", **read)
    for name, exact in load(tmp_path / "dense").items():
        numbers = loaded.state_dict()[name]
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            size = found[f"{name}_scale_inv"].item()
            assert ((numbers - exact).abs() <= (exact.abs() / 16 + size * 2.0**-9) * 1.0001).all()
        else:
            assert numbers.equal(exact)


SCHEMES: dict[str, tuple[dict[str, Any], int]] = {
    "float-quantized": ({"num_bits": 8, "type": "float", "strategy": "channel"}, 160),
    "int-quantized": ({"num_bits": 8, "type": "int", "strategy": "channel"}, 160),
    "pack-quantized": ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}, 32),
    "nvfp4-pack-quantized": ({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, 16),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors(tmp_path: Path, name: str) -> None:
    """What the library makes, merged, is decompressed to what --dtype makes of it, and is as near as it may be."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    arguments, size = SCHEMES[name]
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**arguments))
    weight = torch.randn(96, 160).to(BF16)
    largest = {"float": {8: 448, 4: 6}, "int": {8: 127.5, 4: 7.5}}[arguments["type"]][arguments["num_bits"]]
    scale = (weight.view(96, -1, size).abs().amax(2).float() / largest).to(BF16)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": torch.zeros(scale.shape, dtype=torch.int8)}
    if "nvfp4" in name:
        whole = 448 * 6 / weight.abs().max().float().reshape(1)
        state = {"weight": weight, "weight_global_scale": whole, "weight_scale": scale.float() * whole}
    way = compressors.BaseCompressor.get_value_from_registry(name)
    stored = {key: tensor.contiguous() for key, tensor in way.compress(state, scheme).items()}
    config = CONFIG | {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": arguments}},
        }
    }
    plain = {f"{Q}.weight": torch.ones(8, 6).bfloat16()}
    base = write_checkpoint(
        tmp_path / "base", plain | {f"{X}.{key}": tensor for key, tensor in stored.items()}, config=config
    )
    factors = lora_factors(X, (96, 160), rank=4)
    adapter = write_adapter(tmp_path / "a", {key: tensor * 2 for key, tensor in factors.items()}, r=4, lora_alpha=4)
    report = library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    elsewhere = write_adapter(tmp_path / "b", lora_factors(Q, (8, 6)))
    library.merge(tmp_path / "out", [elsewhere], tmp_path / "dense", dtype="bf16")
    found = load(tmp_path / "out")
    again = way.decompress({key: found[f"{X}.{key}"] for key in stored}, scheme)["weight"]
    assert again.to(BF16).equal(load(tmp_path / "dense")[f"{X}.weight"])
    assert report.kept is not None and report.kept[-1].noise is not None and report.kept[-1].noise < 1


def test_fused_experts_in_fp8(tmp_path: Path) -> None:
    """Matrices of experts one after another, each with its blocks, of which the last are smaller."""
    experts, out, inner = 3, 20, 40
    codes, grid = e4m3(experts * out, inner).view(experts, out, inner), scales(experts, 2, 2)
    name = "model.layers.0.mlp.experts.down_proj"
    config = CONFIG | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 32]}}
    base = write_checkpoint(tmp_path / "base", {name: codes, f"{name}_scale_inv": grid}, config=config)
    a, b = torch.randn(2 * experts, inner), torch.randn(out, 2 * experts)
    factors = {"model.layers.0.mlp.experts.lora_A.weight": a, "model.layers.0.mlp.experts.lora_B.weight": b}
    adapter = write_adapter(
        tmp_path / "adapter", factors, r=2, lora_alpha=2, target_parameters=["mlp.experts.down_proj"], target_modules=[]
    )
    library.merge(base, [adapter], tmp_path / "out", quantise="keep")
    library.merge(base, [adapter], tmp_path / "exact", dtype="f32")
    found, exact = load(tmp_path / "out"), load(tmp_path / "exact")[name].double()
    each = found[f"{name}_scale_inv"].double().repeat_interleave(16, 1)[:, :out].repeat_interleave(32, 2)[..., :inner]
    assert (exact.abs() <= 448 * each * (1 + 1e-6)).all()
    assert (found[name].double() - exact / each).abs().max() <= 16.001
    same = found[name].view(torch.uint8) == (exact / each).to(torch.float8_e4m3fn).view(torch.uint8)
    assert same.float().mean() > 0.99  # f32 is rounded once more; zeros keep their sign
