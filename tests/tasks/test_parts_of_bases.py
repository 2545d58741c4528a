"""Parts of bases of all sorts: quantised, GGUF, pipelines, a vocabulary that grows. OUT is that of one machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kept
import numpy as np
import pipelines
import pytest
import torch
from conftest import lora_factors, snapshot, write_adapter, write_checkpoint
from gguf_files import write_lora, write_model
from quantised_bases import FORMATS

from adaptertool import finish, merge, plan_merge, plan_wise, run_part, wise
from adaptertool.errors import UnsupportedError
from adaptertool.files.leftovers import left_behind


def require_as_by_one(folder: Path, base: Path, adapters: Sequence[Path], verify: bool = False, **options: Any) -> None:
    """By three parts, in another order, and one of them twice. OUT is named as one of the base's format."""
    out, one, file = (folder / f"{name}{base.suffix}" for name in ("out", "one", "plan"))
    if "alphas" in options:
        plan_wise(base, adapters[0], out, file=file, **options)
        wise(base, adapters[0], one, **options)
    else:
        plan_merge(base, adapters, out, file, **options)
        merge(base, adapters, one, **options)
    made = [run_part(file, part, 3, verify=verify).made for part in (2, 0, 2, 1)]
    assert made[2] == () and any(made)
    report = finish(file, verify=True, check=True)
    assert report.verified and left_behind(out) == []
    if one.is_file():
        assert out.read_bytes() == one.read_bytes()
    else:
        assert snapshot(out) == snapshot(one)


@pytest.mark.parametrize("name", ["FP8, blocks", "INT4", "NVFP4"])
@pytest.mark.parametrize("alphas", [None, [0.3, 1]])
def test_quantised_weights_that_stay_so(tmp_path: Path, name: str, alphas: list[float] | None) -> None:
    """Codes and their scales are in different shards, and so in different parts."""
    made = kept.FORMATS[name][0]()
    base = kept.base_of(tmp_path / "base", made, shards=1 + len(made.tensors))
    adapter = write_adapter(tmp_path / "adapter", kept.factors_of(made, 0.1), r=2, lora_alpha=2)
    require_as_by_one(tmp_path, base, [adapter], quantise="keep", **({} if alphas is None else {"alphas": alphas}))
    plan_merge(base, [adapter], tmp_path / "new", tmp_path / "new.json", quantise="keep")
    with pytest.raises(UnsupportedError, match="give --verify to `adaptertool finish`"):
        run_part(tmp_path / "new.json", verify=True)


@pytest.mark.parametrize("name", ["FP8, blocks", "GPTQ", "NF4"])
def test_quantised_weights_that_are_decoded(tmp_path: Path, name: str) -> None:
    made = FORMATS[name]()
    base = kept.base_of(tmp_path / "base", made, shards=1 + len(made.tensors))
    adapter = write_adapter(tmp_path / "adapter", kept.factors_of(made, 0.1), r=2, lora_alpha=2)
    require_as_by_one(tmp_path, base, [adapter], verify=True, dtype="bf16")


def test_as_trained(tmp_path: Path) -> None:
    names = [f"model.layers.{number}.mlp.up_proj" for number in range(3)]
    tensors = {f"{name}.weight": torch.randn(64, 64).bfloat16() for name in names}
    base = write_checkpoint(tmp_path / "base", tensors, shards=3, config={"architectures": ["LlamaForCausalLM"]})
    factors = {key: one for name in names for key, one in lora_factors(name, (64, 64)).items()}
    require_as_by_one(tmp_path, base, [write_adapter(tmp_path / "adapter", factors)], verify=True, as_trained="nf4")


@pytest.mark.parametrize("dtype", [None, "f32"])
def test_gguf(tmp_path: Path, dtype: str | None) -> None:
    chance = np.random.default_rng(0)
    arrays = {f"blk.{number}.ffn_up.weight": chance.normal(size=(64, 32)).astype(np.float16) for number in range(2)}
    base = write_model(tmp_path / "base.gguf", arrays)
    factors = {
        f"{name}.lora_{end}": chance.normal(size=shape).astype(np.float32)
        for name in arrays
        for end, shape in (("a", (2, 32)), ("b", (64, 2)))
    }
    adapter = write_lora(tmp_path / "lora.gguf", factors, alpha=2.0)
    require_as_by_one(tmp_path, base, [adapter], verify=True, **({} if dtype is None else {"dtype": dtype}))


def test_a_pipeline(tmp_path: Path) -> None:
    """Its models are shards in folders of their own."""
    base = pipelines.write_pipeline(tmp_path / "base")
    tensors = pipelines.tensors_of(base)
    factors = pipelines.factors_for(tensors, pipelines.modules_of(tensors))
    adapter = pipelines.write_kohya(tmp_path / "lora.safetensors", factors, sgm=False)
    require_as_by_one(tmp_path, base, [adapter])
    plan_merge(base, [adapter], tmp_path / "new", tmp_path / "new.json")
    with pytest.raises(UnsupportedError, match="give --verify to `adaptertool finish`"):
        run_part(tmp_path / "new.json", verify=True)


def test_a_vocabulary_that_grows(tmp_path: Path) -> None:
    base = write_checkpoint(
        tmp_path / "base",
        {"model.embed_tokens.weight": torch.randn(8, 16), "model.layers.0.mlp.up_proj.weight": torch.randn(16, 16)},
        shards=2,
        config={"vocab_size": 8, "tie_word_embeddings": False},
    )
    factors = lora_factors("model.layers.0.mlp.up_proj", (16, 16))
    factors["model.embed_tokens.weight"] = torch.randn(11, 16)
    adapter = write_adapter(tmp_path / "adapter", factors, modules_to_save=["embed_tokens"])
    require_as_by_one(tmp_path, base, [adapter], verify=True)
