"""Quantised mixtures of experts as people have them: DeepSeek's in FP8 throughout, Kimi's with experts in INT4 beside
attention in bf16; adapters of attention alone, and of experts; into codes again, and dense."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import Tensors, load, write_adapter, write_checkpoint
from kept import FORMATS, factors_of, judge
from quantised_bases import FORMATS as BASES
from quantised_bases import Quantised, X
from rationals import Matrix, delta

import adaptertool

EXPERTS = [f"model.layers.1.mlp.experts.{number}" for number in range(2)]
ATTENTION = "model.layers.1.self_attn.kv_a_proj_with_mqa"


class Mixture(NamedTuple):
    """codes: the weights that are codes, by their modules, each as FORMATS has one of the module X"""

    format: str
    config: dict[str, str | list[str]]
    codes: list[str]


DEEPSEEK = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}
MIXTURES = {
    "DeepSeek": Mixture("FP8, blocks", DEEPSEEK, [ATTENTION, *(f"{one}.up_proj" for one in EXPERTS)]),
    "Kimi": Mixture("INT4", DEEPSEEK | {"model_type": "kimi_k2"}, [f"{one}.up_proj" for one in EXPERTS]),
}


def moved(tensors: Tensors, module: str) -> dict[str, torch.Tensor]:
    return {name.replace(X, module): tensor for name, tensor in tensors.items()}


def back(tensors: Tensors, module: str) -> dict[str, torch.Tensor]:
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{module}.")}
    return {name.replace(module, X): tensor for name, tensor in own.items()}


def base_of(folder: Path, mixture: Mixture) -> tuple[Path, dict[str, Quantised]]:
    made = {module: BASES[mixture.format]() for module in mixture.codes}
    tensors = {"model.norm.weight": torch.ones(6), "model.embed_tokens.weight": torch.randn(9, 6).bfloat16()}
    if ATTENTION not in made:
        tensors[ATTENTION + ".weight"] = torch.randn(12, 16).bfloat16()
    for module, own in made.items():
        tensors |= moved(own.tensors, module)
    said = {"quantization_config": next(iter(made.values())).config, "tie_word_embeddings": False}
    return write_checkpoint(folder, tensors, shards=2, config=mixture.config | said), made


def exactly(made: Quantised, factors: Tensors) -> Matrix:
    change = delta(*factors.values())
    return [[w + d for w, d in zip(*rows, strict=True)] for rows in zip(made.exact, change, strict=True)]


@pytest.mark.parametrize("name", MIXTURES)
def test_experts(tmp_path: Path, name: str) -> None:
    mixture = MIXTURES[name]
    base, made = base_of(tmp_path / "base", mixture)
    before, edited = load(base), mixture.codes[-1]
    factors = factors_of(made[edited], 0.1)
    lora = write_adapter(tmp_path / "lora", moved(factors, edited), r=2, lora_alpha=2)
    report = adaptertool.merge(base, [lora], tmp_path / "kept", quantise="keep", verify=True)
    after = load(tmp_path / "kept")
    judge(FORMATS[mixture.format][1], back(before, edited), back(after, edited), exactly(made[edited], factors))
    others = [key for key in before if not key.startswith(f"{edited}.")]
    assert all(torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)) for key in others)
    assert report.kept is not None
    assert adaptertool.verify(tmp_path / "kept", base, [lora], strict=True).ok
    adaptertool.merge(base, [lora], tmp_path / "dense", dtype="f32", verify=True)
    dense = load(tmp_path / "dense")
    for module, own in made.items():
        right = exactly(own, factors) if module == edited else own.exact
        numbers = torch.tensor([[float(value) for value in row] for row in right], dtype=torch.float64)
        assert torch.equal(dense[f"{module}.weight"], numbers.float())
    assert not [key for key in dense if "scale" in key or "packed" in key]


@pytest.mark.parametrize("name", MIXTURES)
def test_attention_alone(tmp_path: Path, name: str) -> None:
    """Of Kimi's it is no codes, and merges without a flag."""
    mixture = MIXTURES[name]
    base, _ = base_of(tmp_path / "base", mixture)
    before, codes = load(base), ATTENTION in mixture.codes
    shape = (20, 72) if codes else (12, 16)
    factors = {"lora_A.weight": torch.randn(2, shape[1]), "lora_B.weight": torch.randn(shape[0], 2)}
    lora = write_adapter(
        tmp_path / "lora", {f"{ATTENTION}.{key}": one for key, one in factors.items()}, r=2, lora_alpha=2
    )
    if codes:
        with pytest.raises(adaptertool.AdapterToolError, match="--dtype bf16"):
            adaptertool.merge(base, [lora], tmp_path / "out")
    adaptertool.merge(base, [lora], tmp_path / "out", quantise="keep" if codes else None)
    after = load(tmp_path / "out")
    changed = {key for key in before if not torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8))}
    assert f"{ATTENTION}.weight" in changed and all(key.startswith(f"{ATTENTION}.") for key in changed)
    assert adaptertool.verify(tmp_path / "out", base, [lora]).ok
