"""What `convert` writes is read again: merged it is the same bits as before, and converted back the same tensors; for
bases that store layers apart, together, and tied, and for experts. What a format cannot hold is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import expert_models as moe
import numpy as np
import pytest
import torch
from conftest import Tensors, load, lora_factors, same_bits, write_adapter, write_checkpoint
from gguf_files import read_model, write_model

import adaptertool
from adaptertool.errors import AdapterToolError, UnsupportedError, UsageError
from adaptertool.formats import SAVINGS

ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
APART = {
    f"{ATTENTION}.q_proj": (8, 8), f"{ATTENTION}.k_proj": (4, 8), f"{ATTENTION}.v_proj": (4, 8),
    f"{MLP}.gate_proj": (12, 8), f"{MLP}.up_proj": (12, 8), f"{MLP}.down_proj": (8, 12),
}  # fmt: skip
TOGETHER = {f"{ATTENTION}.qkv_proj": (16, 8), f"{MLP}.gate_up_proj": (24, 8), f"{MLP}.down_proj": (8, 12)}
HEAD = {"lm_head": (16, 8)}
CONFIG = {
    "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16,
    "intermediate_size": 12,
}  # fmt: skip
BASES = {"apart": ("llama", False), "tied": ("llama", True), "together": ("phi3", False)}
OPTIONS: Mapping[str, dict[str, Any]] = {
    "diffusers": {"prefix": "transformer."}, "comfy": {"prefix": "diffusion_model."}
}  # fmt: skip


def write_base(folder: Path, name: str) -> Path:
    family, tied = BASES[name]
    layers = {**(TOGETHER if family == "phi3" else APART), "model.embed_tokens": (16, 8), **({} if tied else HEAD)}
    architecture = {"llama": "LlamaForCausalLM", "phi3": "Phi3ForCausalLM"}[family]
    config = {**CONFIG, "model_type": family, "architectures": [architecture], "tie_word_embeddings": tied}
    return write_checkpoint(
        folder, {f"{name}.weight": torch.randn(shape) for name, shape in layers.items()}, config=config
    )


def factors(layers: Mapping[str, tuple[int, int]], *, dora: bool = False) -> Tensors:
    found: dict[str, torch.Tensor] = {}
    for name, shape in layers.items():
        found |= lora_factors(name, shape)
        if dora:
            found[f"{name}.lora_magnitude_vector"] = torch.rand(shape[0]) + 1
    return found


ADAPTERS: Mapping[str, tuple[Tensors, dict[str, Any]]] = {
    "apart": (factors(APART), {}),
    "dora": (factors(APART, dora=True), {"use_dora": True, "lora_alpha": 6}),
    "together": (factors(TOGETHER), {"lora_alpha": 6}),
    "head": (factors({f"{ATTENTION}.q_proj": (8, 8), **HEAD}), {}),
}


def written(adapter: Path, out: Path, to: str, base: Path) -> Path:
    target = out.with_name(f"{out.name}{SAVINGS[to].end or ''}")
    report = adaptertool.convert(adapter, target, to=to, base=base, **OPTIONS.get(to, {}))
    assert report.rounded == 0
    return target


def merged(base: Path, adapter: Path, out: Path) -> dict[str, torch.Tensor]:
    adaptertool.merge(base, [adapter], out)
    return load(out)


def require_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(same_bits(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.long("adapter", "to")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("to", [name for name in SAVINGS if name != "peft"])
def test_there_and_back(tmp_path: Path, base: str, adapter: str, to: str) -> None:
    first, path = write_adapter(tmp_path / "a", ADAPTERS[adapter][0], **ADAPTERS[adapter][1]), tmp_path / "base"
    model = write_base(path, base)
    try:
        other = written(first, tmp_path / "other", to, model)
    except UnsupportedError:
        assert to == "gguf" or (base, adapter, to) == ("tied", "head", "mlx") or adapter == "dora"
        return
    expected = merged(model, first, tmp_path / "m1")
    require_same(expected, merged(model, other, tmp_path / "m2"))
    back = written(other, tmp_path / "back", "peft", model)
    require_same(expected, merged(model, back, tmp_path / "m3"))
    if (adapter, base) != ("together", "apart") and (adapter, base) != ("together", "tied") and to != "diffusers":
        require_same(load(first), load(back))


ON_EXPERTS = [
    (to, how, on_first)
    for how in ("apart", "fused", "transposed", "interleaved")
    for to in ("kohya", "comfy", "diffusers", "mlx", "gguf")
    for on_first in (False, True)
    if how in ("apart", "fused") or (not on_first and to != "gguf")
]


@pytest.mark.long("how")
@pytest.mark.parametrize(("to", "how", "on_first"), ON_EXPERTS)
def test_factors_of_all_experts_become_those_of_each(tmp_path: Path, how: str, to: str, on_first: bool) -> None:
    """PEFT's target_parameters on a base that stores experts so; and back as layers of their own."""
    config = moe.CONFIGS[how] | {"num_experts": moe.E_}
    base = write_checkpoint(tmp_path / "base", moe.store(*moe.experts(), how), config=config)
    parameters = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "r": moe.R_}
    first = write_adapter(tmp_path / "a", moe.fused_factors(on_first), **parameters)
    other = written(first, tmp_path / "other", to, base)
    expected = merged(base, first, tmp_path / "m1")
    require_same(expected, merged(base, other, tmp_path / "m2"))
    back = written(other, tmp_path / "back", "peft", base)
    assert len(load(back)) == 2 * 3 * moe.E_
    require_same(expected, merged(base, back, tmp_path / "m3"))


def test_experts_in_gguf_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    """By the formula, in numpy; by either base the adapter is written with a stack for each tensor."""
    weights = moe.experts()
    arrays = {f"blk.0.ffn_{x}_exps.weight": w.numpy() for x, w in zip(("gate", "up", "down"), weights, strict=True)}
    model = write_model(tmp_path / "b.gguf", arrays, arch="qwen3moe")
    config = moe.CONFIGS["apart"] | {"num_experts": moe.E_}
    checkpoint = write_checkpoint(tmp_path / "base", moe.store(*weights, "apart"), config=config)
    low = moe.one_by_one()
    adapter = write_adapter(tmp_path / "a", low, r=moe.R_)
    adaptertool.merge(model, [adapter], tmp_path / "m0.gguf")
    found = read_model(tmp_path / "m0.gguf")
    for name in ("gate", "up", "down"):
        for expert in range(moe.E_):
            a, b = (low[f"{moe.X}.{expert}.{name}_proj.lora_{x}.weight"].double().numpy() for x in "AB")
            exact = arrays[f"blk.0.ffn_{name}_exps.weight"][expert].astype(float) + 4 * b @ a
            assert np.abs(found[f"blk.0.ffn_{name}_exps.weight"][expert] - exact).max() < 1e-6
    for number, base in enumerate((model, checkpoint)):
        adaptertool.convert(adapter, tmp_path / f"{number}.gguf", to="gguf", base=base)
        assert {array.shape[0] for array in read_model(tmp_path / f"{number}.gguf").values()} == {moe.E_}
        adaptertool.merge(model, [tmp_path / f"{number}.gguf"], tmp_path / f"m{number + 1}.gguf")
        again = read_model(tmp_path / f"m{number + 1}.gguf")
        assert all((again[name] == array).all() for name, array in found.items())
    del low[f"{moe.X}.1.up_proj.lora_A.weight"], low[f"{moe.X}.1.up_proj.lora_B.weight"]
    some = write_adapter(tmp_path / "some", low, r=moe.R_)
    with pytest.raises(UnsupportedError, match="2 of 3 experts"):
        adaptertool.convert(some, tmp_path / "some.gguf", to="gguf", base=checkpoint)


EMBEDDING = {
    "model.embed_tokens.lora_embedding_A": torch.randn(4, 16),
    "model.embed_tokens.lora_embedding_B": torch.randn(8, 4),
}


@pytest.mark.parametrize("tensors", [EMBEDDING, factors(HEAD)], ids=["embedding", "head"])
def test_ends_of_tied_models(tmp_path: Path, tensors: Tensors) -> None:
    """llama.cpp has one tensor for both, and loads no adapter of it; MLX changes both by either."""
    base, adapter = write_base(tmp_path / "base", "tied"), write_adapter(tmp_path / "a", tensors)
    with pytest.raises(UnsupportedError, match=r"llama\.cpp then has one tensor for both"):
        adaptertool.convert(adapter, tmp_path / "out.gguf", to="gguf", base=base)
    with pytest.raises(UnsupportedError, match="the base ties lm_head"):
        adaptertool.convert(adapter, tmp_path / "out", to="mlx", base=base)
    for make in (adaptertool.convert, adaptertool.sum_adapters):
        with pytest.raises(UsageError, match=r"Only the base tells: `adaptertool convert` with --base"):
            make(adapter if make is adaptertool.convert else [adapter], tmp_path / "out", to="mlx")  # type: ignore[arg-type]
    untied = write_base(tmp_path / "untied", "apart")
    for to in ("gguf", "mlx"):
        other = written(adapter, tmp_path / to, to, untied)
        require_same(merged(untied, adapter, tmp_path / f"{to}1"), merged(untied, other, tmp_path / f"{to}2"))


def test_a_prefix_of_a_pipeline_is_no_part_of_the_name(tmp_path: Path) -> None:
    """Also where layers are stored together: names are those of the model."""
    base, adapter = write_base(tmp_path / "base", "together"), write_adapter(tmp_path / "a", factors(APART))
    comfy = written(adapter, tmp_path / "c", "comfy", base)
    assert all(key.startswith("diffusion_model.model.layers.") for key in load(comfy))
    mlx = written(comfy, tmp_path / "mlx", "mlx", base)
    assert all(key.startswith("model.layers.") for key in load(mlx))


def test_of_another_model(tmp_path: Path) -> None:
    adapter, other = write_adapter(tmp_path / "a", factors(APART)), write_base(tmp_path / "base", "apart")
    wide = write_adapter(tmp_path / "w", factors({f"{ATTENTION}.q_proj": (8, 10)}))
    with pytest.raises(AdapterToolError, match="is this adapter for another model"):
        adaptertool.convert(wide, tmp_path / "out.safetensors", to="kohya", base=other)
    with pytest.raises(AdapterToolError, match="only the base tells: `adaptertool convert` with --base"):
        adaptertool.convert(adapter, tmp_path / "out.gguf", to="gguf")
