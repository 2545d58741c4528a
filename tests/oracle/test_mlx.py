"""MLX's adapters and checkpoints against mlx-lm itself: what it fuses, and what it loads of what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, lora_factors, same_bits, write_adapter, write_checkpoint
from oracle import half_ulp_excess

import adaptertool
from adaptertool.errors import UnsupportedError

models = pytest.importorskip("mlx_models", reason="mlx and mlx-lm are not installed")

Q, UP = "self_attn.q_proj", "mlp.up_proj"
EMBEDDING = "model.embed_tokens"
CASES = {
    "lora": (models.LLAMA, "lora", {}),
    "some blocks": (models.LLAMA, "lora", {"layers": 1, "keys": [Q, UP], "scale": 20}),
    "embedding": (models.LLAMA, "lora", {"keys": [Q, EMBEDDING, "lm_head"], "rank": 1}),
    "tied": (models.QWEN, "lora", {"keys": [UP, EMBEDDING], "scale": -0.25}),
    "dora": (models.LLAMA, "dora", {}),
    "dora of an embedding": (models.QWEN, "dora", {"keys": [UP, EMBEDDING]}),
    "experts": (models.EXPERTS, "lora", {"rank": 3}),
}


def trained(folder: Path, case: str) -> tuple[models.Config, Path, Any]:
    """An adapter, and the model that it is on."""
    config, kind, options = CASES[case]
    model = models.model_of(config)
    said = models.train(model, kind, **options)
    return config, models.save_adapter(model, said, folder / "adapter"), model


@pytest.mark.parametrize("case", CASES)
def test_a_merge_is_what_mlx_fuses(tmp_path: Path, case: str) -> None:
    config, adapter, model = trained(tmp_path, case)
    base = models.save_base(models.model_of(config), config, tmp_path / "base")
    expected = models.outputs(model)
    fused = models.weights(models.fused(model))
    report = adaptertool.merge(base, [adapter], tmp_path / "out")
    assert any("0000050_adapters.safetensors" in note for note in report.notes)
    merged, before = load(tmp_path / "out"), load(base)
    assert merged.keys() == fused.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, fused[name], rtol=2e-6, atol=2e-6)
        assert (fused[name] != before[name]).any() or same_bits(weight, before[name])
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    again = models.model_at(tmp_path / "out")
    torch.testing.assert_close(models.outputs(again), expected, rtol=1e-4, atol=1e-5)
    assert adaptertool.verify(tmp_path / "out", base, [adapter]).ok


@pytest.mark.parametrize("case", ["embedding", "experts"])
def test_each_element_is_rounded_correctly(tmp_path: Path, case: str) -> None:
    """In bf16, against the formula in float64."""
    config, adapter, _ = trained(tmp_path, case)
    base = models.save_base(models.model_of(config, models.mx.bfloat16), config, tmp_path / "base")
    adaptertool.merge(base, [adapter], tmp_path / "out")
    merged, factors = load(tmp_path / "out"), load(adapter / "adapters.safetensors")
    for name, weight in load(base).items():
        module, exact = name.removesuffix(".weight"), weight.double()
        if (a := factors.get(f"{module}.lora_a")) is not None:
            a, b = a.double(), factors[f"{module}.lora_b"].double()
            change = b @ a if a.ndim == 3 else a @ b if module == EMBEDDING else (a @ b).T
            exact = exact + 3.5 * change
        assert half_ulp_excess(merged[name], exact).max() <= 1 + 1e-6


def test_whole_tensors_replace(tmp_path: Path) -> None:
    model = models.model_of(models.EXPERTS)
    base = models.save_base(model, models.EXPERTS, tmp_path / "base")
    model.layers[-1].unfreeze()
    model.update(models.tree_map(lambda w: w + 1, model.trainable_parameters()))
    said = {"fine_tune_type": "full", "num_layers": 1, "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}}
    adapter = models.save_adapter(model, said, tmp_path / "adapter")
    adaptertool.merge(base, [adapter], tmp_path / "out")
    merged, expected = load(tmp_path / "out"), models.weights(model)
    assert all(same_bits(merged[name], weight) for name, weight in expected.items())
    plain = models.as_hugging_face(models.model_of(models.EXPERTS))
    alone = write_checkpoint(tmp_path / "alone", plain, config=models.EXPERTS)
    adaptertool.merge(alone, [adapter], tmp_path / "onto")
    onto = load(tmp_path / "onto")
    assert all(same_bits(onto[name], weight) for name, weight in models.as_hugging_face(model).items())


def test_experts_by_themselves_and_in_a_stack(tmp_path: Path) -> None:
    """MLX's adapter on a checkpoint of Hugging Face, and PEFT's on one of MLX."""
    config, adapter, model = trained(tmp_path, "experts")
    plain = models.model_of(config)
    alone = write_checkpoint(tmp_path / "alone", models.as_hugging_face(plain), config=config)
    adaptertool.merge(alone, [adapter], tmp_path / "out")
    expected, merged = models.as_hugging_face(models.fused(model)), load(tmp_path / "out")
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name], weight, rtol=2e-6, atol=2e-6)

    stacked = models.save_base(plain, config, tmp_path / "stacked")
    factors = lora_factors("model.layers.1.mlp.experts.2.down_proj", (32, 16))
    peft = write_adapter(tmp_path / "peft", factors)
    adaptertool.merge(alone, [peft], tmp_path / "one")
    adaptertool.merge(stacked, [peft], tmp_path / "other")
    one, other = load(tmp_path / "one"), load(tmp_path / "other")
    name = "model.layers.1.mlp.{}.down_proj.weight"
    assert not same_bits(one[name.format("experts.2")], load(alone)[name.format("experts.2")])
    for expert in range(4):
        assert same_bits(one[name.format(f"experts.{expert}")], other[name.format("switch_mlp")][expert])


def test_of_a_quantised_base_only_codes_are_refused(tmp_path: Path) -> None:
    config = {**models.LLAMA, "hidden_size": 64, "intermediate_size": 96}
    coded, said = models.quantised(models.model_of(config), config)
    base = models.save_base(coded, said, tmp_path / "base")
    factors = lora_factors("model.layers.0.mlp.down_proj", (64, 96))
    with pytest.raises(UnsupportedError, match=r"down_proj\.weight looks quantised.*mlx_lm\.convert --dequantize"):
        adaptertool.merge(base, [write_adapter(tmp_path / "adapter", factors)], tmp_path / "out")
    norm = {"model.norm.weight": torch.ones(64)}
    adaptertool.merge(base, [write_adapter(tmp_path / "norm", norm)], tmp_path / "out")
    merged, before = load(tmp_path / "out"), load(base)
    assert [name for name in merged if not same_bits(merged[name], before[name])] == ["model.norm.weight"]


def both(path: str, shape: tuple[int, int], **options: Any) -> dict[str, torch.Tensor]:
    return {key: factor for n in range(2) for key, factor in lora_factors(path.format(n), shape, **options).items()}


LAYER = "model.layers.{}." + Q
OF_EMBEDDING = {
    f"{EMBEDDING}.lora_embedding_A": torch.ones(4, 64) / 9,
    f"{EMBEDDING}.lora_embedding_B": torch.arange(128.0).reshape(32, 4) / 99,
}
EXPERTS = [f"model.layers.{{}}.mlp.experts.{expert}.up_proj" for expert in range(4)]
MAGNITUDES = {f"{LAYER.format(n)}.lora_magnitude_vector": torch.linspace(0.5, 2, 32) for n in range(2)}
WRITTEN = {
    "lora": (models.LLAMA, lambda: both(LAYER, (32, 32)), {}, True),
    "without a base": (models.LLAMA, lambda: both(LAYER, (32, 32)), {}, False),
    "one of two blocks": (models.LLAMA, lambda: lora_factors(LAYER.format(0), (32, 32)), {"use_rslora": True}, True),
    "dora": (models.LLAMA, lambda: both(LAYER, (32, 32)) | MAGNITUDES, {"use_dora": True}, True),
    "embedding": (models.LLAMA, lambda: both("model.layers.{}." + UP, (48, 32)) | OF_EMBEDDING, {}, True),
    "ranks and scales": (
        models.LLAMA,
        lambda: both(LAYER, (32, 32)) | lora_factors(f"model.layers.0.{UP}", (48, 32), 2, torch.float16),
        {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 3.3}},
        True,
    ),
    "experts": (
        models.EXPERTS,
        lambda: {key: factor for path in EXPERTS for key, factor in both(path, (16, 32)).items()},
        {},
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_mlx_loads_what_is_written(tmp_path: Path, case: str) -> None:
    config, factors, fields, with_base = WRITTEN[case]
    base = write_checkpoint(tmp_path / "base", models.as_hugging_face(models.model_of(config)), config=config)
    peft = write_adapter(tmp_path / "peft", factors(), **fields)
    report = adaptertool.convert(peft, tmp_path / "mlx", to="mlx", base=base if with_base else None)
    assert bool(report.rounded) == (case == "ranks and scales")
    model = models.with_adapter(config, tmp_path / "mlx")
    expected, found = models.outputs(models.model_of(config)), models.outputs(model)
    assert (found - expected).abs().max() > 1e-3
    adaptertool.merge(base, [peft], tmp_path / "out")
    merged = load(tmp_path / "out")
    for name, weight in models.as_hugging_face(models.fused(model)).items():
        torch.testing.assert_close(weight, merged[name], rtol=3e-6, atol=3e-6)
    adaptertool.merge(base, [tmp_path / "mlx"], tmp_path / "again")
    for name, weight in load(tmp_path / "again").items():
        assert same_bits(weight, merged[name]) or case == "ranks and scales"
