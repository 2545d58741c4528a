"""GGUF adapters that are written: one alpha for all layers, and what they cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tensors, lora_factors, write_adapter, write_checkpoint
from gguf_files import read_model, write_model

import adaptertool
from adaptertool.errors import InternalError, UnsupportedError
from adaptertool.files.gguf import read_gguf
from adaptertool.files.gguf_header import build_gguf
from adaptertool.spec.tensors import TensorSpec

gguf = pytest.importorskip("gguf")

V, DOWN, E = "model.layers.0.self_attn.v_proj", "model.layers.0.mlp.down_proj", "model.embed_tokens"
NAMES = {V: "blk.0.attn_v.weight", DOWN: "blk.0.ffn_down.weight", E: "token_embd.weight"}
CONFIG = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors = {f"{name}.weight": torch.randn(8, 6) for name in (V, DOWN)}
    tensors |= {f"{V}.bias": torch.randn(8), f"{E}.weight": torch.randn(10, 6), "lm_head.weight": torch.randn(10, 6)}
    return write_checkpoint(tmp_path / "base", tensors, config=CONFIG)


def written(tmp_path: Path, base: Path, tensors: Tensors, **fields: Any) -> tuple[float, dict[str, Any], Any]:
    """alpha, tensors and the report of an adapter of PEFT's that was converted."""
    peft = write_adapter(tmp_path / "peft", tensors, **fields)
    report = adaptertool.convert(peft, tmp_path / "lora.gguf", to="gguf", base=base)
    alpha = gguf.GGUFReader(tmp_path / "lora.gguf").fields["adapter.lora.alpha"].contents()
    return alpha, read_model(tmp_path / "lora.gguf"), report


def merges_alike(tmp_path: Path, base: Path) -> bool:
    """Whether both adapters make the same of the checkpoint."""
    for number, adapter in enumerate(("peft", "lora.gguf")):
        adaptertool.merge(base, [tmp_path / adapter], tmp_path / f"out{number}")
    return adaptertool.diff(tmp_path / "out0", tmp_path / "out1").equal


def test_ranks_may_differ(tmp_path: Path, base: Path) -> None:
    low = {**lora_factors(V, (8, 6)), **lora_factors(DOWN, (8, 6), rank=2)}
    alpha, tensors, report = written(tmp_path, base, low, r=4, rank_pattern={"down_proj": 2}, lora_alpha=8)
    assert alpha == 8 and not report.rounded and report.copied == 4 and not report.notes
    assert (tensors[f"{NAMES[DOWN]}.lora_b"] == low[f"{DOWN}.lora_B.weight"].numpy()).all()
    assert merges_alike(tmp_path, base)


@pytest.mark.parametrize(("other", "rounded"), [(4, False), (32, False), (5, True)])
def test_another_scale_goes_into_lora_b(tmp_path: Path, base: Path, other: int, rounded: bool) -> None:
    low = {**lora_factors(V, (8, 6)), **lora_factors(DOWN, (8, 6)), **lora_factors("lm_head", (10, 6))}
    alpha, tensors, report = written(tmp_path, base, low, lora_alpha=8, alpha_pattern={"down_proj": other})
    assert alpha == 8 and bool(report.rounded) == rounded
    assert any("1 of 3 layers have another scale than adapter.lora.alpha says" in note for note in report.notes)
    exact = low[f"{DOWN}.lora_B.weight"].double() * (other / 8)
    assert (tensors[f"{NAMES[DOWN]}.lora_b"] == exact.float().numpy()).all()
    assert rounded or merges_alike(tmp_path, base)


def test_a_scale_that_is_near_is_not_taken_for_the_same(tmp_path: Path, base: Path) -> None:
    """What is said to be 6e-8 is no more than that."""
    low = {**lora_factors(V, (8, 6)), **lora_factors(DOWN, (8, 6))}
    _, _, report = written(tmp_path, base, low, lora_alpha=8, alpha_pattern={"down_proj": 8 * (1 + 2**-21)})
    assert report.rounded and "another scale" in " ".join(report.notes)


def test_rank_stabilised(tmp_path: Path, base: Path) -> None:
    """Half the change is what llama.cpp's own converter makes of this."""
    alpha, _, report = written(tmp_path, base, lora_factors(V, (8, 6), rank=3), r=3, lora_alpha=4, use_rslora=True)
    assert alpha == np.float32(4 / 3**0.5 * 3) and not report.rounded
    assert any("is rounded: adapter.lora.alpha is FLOAT32" in note for note in report.notes)


def test_the_embedding_is_turned(tmp_path: Path, base: Path) -> None:
    a, b = torch.randn(4, 10), torch.randn(6, 4)
    _, tensors, _ = written(tmp_path, base, {f"{E}.lora_embedding_A": a, f"{E}.lora_embedding_B": b})
    assert (tensors[f"{NAMES[E]}.lora_a"] == a.T.numpy()).all() and (tensors[f"{NAMES[E]}.lora_b"] == b.numpy()).all()
    assert merges_alike(tmp_path, base)
    adaptertool.convert(tmp_path / "lora.gguf", tmp_path / "back", to="peft", base=base)
    assert adaptertool.diff(tmp_path / "back", tmp_path / "peft").equal


@pytest.mark.parametrize(
    ("tensors", "fields", "match"),
    [
        ({f"{V}.lora_magnitude_vector": torch.ones(8)}, {"use_dora": True}, "of kind dora.*GGUF has LoRA"),
        ({"lm_head.weight": torch.ones(10, 6)}, {"modules_to_save": ["lm_head"]}, "of kind full"),
        ({f"{V}.lora_B.bias": torch.ones(8)}, {"lora_bias": True}, "v_proj.*GGUF has LoRA of the weights"),
    ],
)
def test_what_gguf_cannot_hold(tmp_path: Path, base: Path, tensors: Tensors, fields: Any, match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        written(tmp_path, base, {**lora_factors(V, (8, 6)), **tensors}, **fields)
    assert not (tmp_path / "lora.gguf").exists()


def test_without_names_there_is_none(tmp_path: Path) -> None:
    peft = write_adapter(tmp_path / "peft", lora_factors(V, (8, 6)))
    config = CONFIG | {"architectures": ["OddForCausalLM"]}
    other = write_checkpoint(tmp_path / "other", {f"{V}.weight": torch.ones(8, 6)}, config=config)
    for beside in (None, other):
        with pytest.raises(UnsupportedError, match=r"only the base tells: .*convert.*Qwen2ForCausalLM"):
            adaptertool.convert(peft, tmp_path / "o.gguf", to="gguf", base=beside)


def test_adapters_of_peft_are_not_made_of_gguf(tmp_path: Path) -> None:
    peft = write_adapter(tmp_path / "peft", lora_factors(V, (8, 6)))
    model = write_model(tmp_path / "m.gguf", {NAMES[V]: np.ones((8, 6), np.float32)})
    for run in (
        lambda: adaptertool.extract(model, model, tmp_path / "x", rank=1),
        lambda: adaptertool.sum_adapters([peft, peft], tmp_path / "x", base=model),
        lambda: adaptertool.truncate(peft, tmp_path / "x", rank=1, base=model),
    ):
        with pytest.raises(UnsupportedError, match=r"m\.gguf is GGUF, whose names"):
            run()


def test_a_header_is_read_as_it_was_built(tmp_path: Path) -> None:
    specs = [TensorSpec("a", "F32", (2, 3), 24), TensorSpec("b", "BF16", (5,), 10), TensorSpec("c", "F16", (), 2)]
    head = build_gguf({"general.architecture": "llama", "x": 0.5}, specs, {})
    (tmp_path / "a.gguf").write_bytes(head + bytes(96))
    found = read_gguf(tmp_path / "a.gguf")
    assert [ref.spec for ref in found.tensors.values()] == specs and found.data_start == len(head)
    assert found.fields == {"general.architecture": "llama", "x": 0.5}
    with pytest.raises(InternalError):
        build_gguf({}, specs, {}, 7)
