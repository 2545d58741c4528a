"""Adapters across GGUF: a model that transformers loads from GGUF, with an adapter of PEFT's, and the reverse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, lora_factors, write_adapter, write_checkpoint
from gguf_files import field, of_arrays, packed, read_model, write_lora
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import adaptertool
from adaptertool.errors import MismatchError, UnsupportedError

gguf = pytest.importorskip("gguf")

HEADS, GROUPS = 4, 2
CONFIG = LlamaConfig(
    vocab_size=32, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=HEADS,
    num_key_value_heads=GROUPS, head_dim=6, tie_word_embeddings=False, max_position_embeddings=64,
    architectures=["LlamaForCausalLM"],
)  # fmt: skip
FIELDS = {
    "block_count": 2, "context_length": 64, "embedding_length": 24, "feed_forward_length": 20, "vocab_size": 32,
    "attention.head_count": HEADS, "attention.head_count_kv": GROUPS, "attention.key_length": 6,
    "attention.value_length": 6, "rope.dimension_count": 6, "attention.layer_norm_rms_epsilon": 1e-6,
}  # fmt: skip
Q, K, V = (f"model.layers.1.self_attn.{name}_proj" for name in "qkv")
Tensors = dict[str, torch.Tensor]


def converted(tensors: Tensors) -> dict[str, np.ndarray[Any, Any]]:
    """As llama.cpp's converter does it (LlamaModel.permute)."""
    names, found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2), {}
    for name, tensor in tensors.items():
        array = tensor.numpy()
        for part, heads in ((".q_proj.", HEADS), (".k_proj.", GROUPS)):
            if part in name:
                parts = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
                array = parts.swapaxes(1, 2).reshape(array.shape)
        found[names.get_name(name, (".weight",))] = np.ascontiguousarray(array)
    return found


@pytest.fixture
def model() -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in LlamaForCausalLM(CONFIG).state_dict().items()}


@pytest.fixture
def bases(tmp_path: Path, model: Tensors) -> tuple[Path, Path]:
    """A checkpoint, and the same model as GGUF."""
    fields = [field("general.architecture", "llama"), *(field(f"llama.{key}", one) for key, one in FIELDS.items())]
    (tmp_path / "m.gguf").write_bytes(packed(of_arrays(converted(model)), fields))
    return write_checkpoint(tmp_path / "base", model, config=CONFIG.to_dict()), tmp_path / "m.gguf"


def adapters(folder: Path, *modules: str, **more: Any) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """An adapter of PEFT's, the same as GGUF, and what it changes."""
    shapes = {Q: (24, 24), K: (12, 24), V: (12, 24), "lm_head": (32, 24), "model.layers.0.mlp.up_proj": (20, 24)}
    low: dict[str, torch.Tensor] = {}
    for module in modules:
        low |= lora_factors(module, shapes[module])
    own: dict[str, np.ndarray[Any, Any]] = {}
    for module in modules:
        a, b = (low[f"{module}.lora_{role}.weight"] for role in "AB")
        ((name, _),) = converted({f"{module}.weight": torch.zeros(shapes[module])}).items()
        own |= {f"{name}.lora_a": a.numpy(), f"{name}.lora_b": converted({f"{module}.weight": b})[name]}
    deltas = {
        f"{module}.weight": 2 * low[f"{module}.lora_B.weight"].double() @ low[f"{module}.lora_A.weight"].double()
        for module in modules
    }
    return write_adapter(folder / "peft", low | more), write_lora(folder / "lora.gguf", own), deltas


def test_a_merge_into_gguf_is_what_transformers_loads(tmp_path: Path, model: Tensors, bases: tuple[Path, Path]) -> None:
    peft, _, deltas = adapters(tmp_path, Q, K, V, "lm_head", "model.layers.0.mlp.up_proj")
    adaptertool.merge(bases[1], [peft], tmp_path / "out.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="out.gguf", dtype=torch.float32).state_dict()
    for name, tensor in model.items():
        assert loaded[name].equal((tensor.double() + deltas.get(name, 0)).float()), name


@pytest.mark.parametrize("base", [0, 1])
@pytest.mark.parametrize("adapter", [0, 1])
def test_all_four_ways_are_the_same(tmp_path: Path, model: Tensors, bases: Any, base: int, adapter: int) -> None:
    *both, deltas = adapters(tmp_path, Q, K, V, "lm_head")
    out = tmp_path / ("out.gguf" if base else "out")
    adaptertool.merge(bases[base], [both[adapter]], out)
    exact = {name: (tensor.double() + deltas.get(name, 0)).float() for name, tensor in model.items()}
    got, want = (read_model(out), converted(exact)) if base else (load(out), exact)
    assert got.keys() == want.keys()
    assert all((got[name] == want[name]).all() for name in want)
    assert adaptertool.verify(out, bases[base], [both[adapter]], strict=True).ok
    other = adaptertool.verify(out, bases[base], [both[adapter]], weights=["0.7"])
    assert {tensor.diagnosis for tensor in other.tensors if tensor.status == "wrong"} == {"wrong-scale"}


def test_a_merge_that_leaves_the_rows_as_they_were_is_named(tmp_path: Path, bases: tuple[Path, Path]) -> None:
    """By names alone, as by a script that knows no more."""
    peft, _, deltas = adapters(tmp_path, Q, K, V)
    names, wrong = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2), read_model(bases[1])
    for name, delta in deltas.items():
        wrong[names.get_name(name, (".weight",))] += delta.numpy().astype(np.float32)
    fields = [field("general.architecture", "llama"), *(field(f"llama.{key}", one) for key, one in FIELDS.items())]
    (tmp_path / "wrong.gguf").write_bytes(packed(of_arrays(wrong), fields))
    report = adaptertool.verify(tmp_path / "wrong.gguf", bases[1], [peft])
    assert {one.name: one.diagnosis for one in report.tensors if one.status == "wrong"} == {
        "blk.1.attn_q.weight": "rows-not-reordered",
        "blk.1.attn_k.weight": "rows-not-reordered",
    }


def test_dora_goes_with_the_rows(tmp_path: Path, model: Tensors, bases: tuple[Path, Path]) -> None:
    magnitude = {f"{Q}.lora_magnitude_vector": torch.rand(24) + 0.5}
    peft, _, deltas = adapters(tmp_path, Q, **magnitude)
    peft = write_adapter(peft, {k.removeprefix("base_model.model."): t for k, t in load(peft).items()}, use_dora=True)
    adaptertool.merge(bases[1], [peft], tmp_path / "out.gguf")
    changed = model[f"{Q}.weight"].double() + deltas[f"{Q}.weight"]
    rows = magnitude[f"{Q}.lora_magnitude_vector"].double() / changed.norm(dim=1)
    want = converted({f"{Q}.weight": (rows[:, None] * changed).float()})
    assert all((read_model(tmp_path / "out.gguf")[name] == one).all() for name, one in want.items())


def test_as_adapter_of_gguf_and_back(tmp_path: Path, bases: tuple[Path, Path]) -> None:
    peft, lora, _ = adapters(tmp_path, Q, K, V, "lm_head")
    for base in bases:
        adaptertool.convert(peft, tmp_path / f"{base.name}-c.gguf", to="gguf", base=base)
        ours, theirs = read_model(tmp_path / f"{base.name}-c.gguf"), read_model(lora)
        assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
        assert gguf.GGUFReader(tmp_path / f"{base.name}-c.gguf").fields["adapter.lora.alpha"].contents() == 8
    report = adaptertool.convert(lora, tmp_path / "back", to="peft", base=bases[0])
    assert not report.rounded
    before, after = load(peft), load(tmp_path / "back")
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


@pytest.mark.parametrize(
    ("config", "error", "match"),
    [
        ({"architectures": ["OddForCausalLM"]}, UnsupportedError, r"llama in GGUF.*it is a OddForCausalLM, and known"),
        ({"architectures": None}, UnsupportedError, r"no config\.json says what it is"),
        ({"architectures": ["Qwen2ForCausalLM"]}, MismatchError, r"for the architecture llama, and .* is qwen2"),
        ({"num_attention_heads": None}, UnsupportedError, r"how many there are \(num_attention_heads"),
        ({"num_attention_heads": 5}, MismatchError, r"makes no 5 heads of halves"),
        ({"num_attention_heads": 2}, MismatchError, r"24×24, and the base says 2 heads of 6 rows"),
        ({"num_attention_heads": 3, "head_dim": None, "hidden_size": 12}, MismatchError, r"3 heads of 4 rows"),
    ],
)
def test_what_a_checkpoint_must_say(
    tmp_path: Path, model: Tensors, config: dict[str, object], error: type[Exception], match: str
) -> None:
    base = write_checkpoint(tmp_path / "base", model, config=CONFIG.to_dict() | config)
    with pytest.raises(error, match=match):
        adaptertool.merge(base, [adapters(tmp_path, Q)[1]], tmp_path / "out")


@pytest.mark.parametrize(
    ("arch", "error", "match"),
    [("odd", MismatchError, "have no tensor in"), ("qwen2", None, ""), ("gemma", None, "")],
)
def test_another_architecture_in_gguf(
    tmp_path: Path, model: Tensors, arch: str, error: type[Exception] | None, match: str
) -> None:
    """Of qwen2 and gemma no row is in another place."""
    (tmp_path / "m.gguf").write_bytes(packed(of_arrays(converted(model)), [field("general.architecture", arch)]))
    peft, _, deltas = adapters(tmp_path, Q)
    if error is not None:
        with pytest.raises(error, match=match):
            adaptertool.merge(tmp_path / "m.gguf", [peft], tmp_path / "out.gguf")
        return
    adaptertool.merge(tmp_path / "m.gguf", [peft], tmp_path / "out.gguf")
    name, before = "blk.1.attn_q.weight", converted(model)
    exact = before[name].astype(np.float64) + deltas[f"{Q}.weight"].numpy()
    assert (read_model(tmp_path / "out.gguf")[name] == exact.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("arch", "key", "shape", "match"),
    [
        ("llama", f"{Q}.weight", (24, 24), r"rows in another order; full on such a tensor is not supported yet"),
        ("gemma", "model.norm.weight", (24,), r"1 was added to it, or subtracted; full on such"),
    ],
)
def test_saved_tensors_that_are_other_numbers_are_refused(
    tmp_path: Path, model: Tensors, arch: str, key: str, shape: tuple[int, ...], match: str
) -> None:
    fields = [field("general.architecture", arch), field(f"{arch}.attention.head_count", HEADS)]
    (tmp_path / "m.gguf").write_bytes(packed(of_arrays(converted(model)), fields))
    peft = write_adapter(tmp_path / "peft", {key: torch.ones(shape)}, modules_to_save=[key.split(".")[-2]])
    with pytest.raises(UnsupportedError, match=match):
        adaptertool.merge(tmp_path / "m.gguf", [peft], tmp_path / "out.gguf")


def test_kinds_that_may_count_rows_are_refused(tmp_path: Path, bases: tuple[Path, Path]) -> None:
    tensors = {f"{Q}.ia3_l": torch.ones(24, 1)}
    peft = write_adapter(tmp_path / "peft", tensors)
    fields = {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}
    (peft / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(UnsupportedError, match=r"rows in another order; ia3 on such a tensor is not supported yet"):
        adaptertool.merge(bases[1], [peft], tmp_path / "out.gguf")


def test_a_resized_vocabulary_is_refused(tmp_path: Path, bases: tuple[Path, Path]) -> None:
    tensors = {f"{name}.weight": torch.ones(40, 24) for name in ("model.embed_tokens", "lm_head")}
    peft = write_adapter(tmp_path / "peft", tensors, modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises((UnsupportedError, MismatchError), match=r"GGUF|resiz|must be"):
        adaptertool.merge(bases[1], [peft], tmp_path / "out.gguf")
    assert dataclasses.is_dataclass(adaptertool.inspect(peft))
