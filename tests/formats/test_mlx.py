"""Adapters of mlx-lm: what their files mean, and what is refused by name. tests/oracle/test_mlx.py asks mlx-lm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, write_adapter, write_checkpoint
from oracle import half_ulp_excess
from safetensors.torch import load_file, save_file
from samples import write_mlx

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError, UsageError
from adaptertool.files.parsed import Parsed
from adaptertool.formats import read_alone, recognised

OUT, IN, RANK, VOCABULARY = 8, 6, 4, 10
LAYER = "model.layers.0.self_attn.q_proj"
EMBEDDING = "model.embed_tokens"
PARAMETERS = {"rank": RANK, "scale": 2.0, "dropout": 0.0}


def write(folder: Path, tensors: dict[str, torch.Tensor], kind: str | None = "lora", **fields: Any) -> Path:
    return write_mlx(
        folder, tensors, {"fine_tune_type": kind, "num_layers": 16, "lora_parameters": PARAMETERS} | fields
    )


def factors(name: str = LAYER, shape: tuple[int, int] = (IN, OUT), rank: int = RANK) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_a": torch.randn(shape[0], rank), f"{name}.lora_b": torch.randn(rank, shape[1])}


def base_of(folder: Path, *more: str, dtype: torch.dtype = torch.bfloat16, mlx: bool = False, **config: Any) -> Path:
    tensors = {f"{name}.weight": torch.randn(OUT, IN).to(dtype) for name in (LAYER, *more)}
    tensors[f"{EMBEDDING}.weight"] = torch.randn(VOCABULARY, IN).to(dtype)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False} | config
    path = write_checkpoint(folder, tensors, config=config)
    if mlx:
        save_file(tensors, path / "model.safetensors", metadata={"format": "mlx"})
    return path


def refusal(path: Path, kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        read_alone(Parsed(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("said", ["lora", None])
def test_the_scale_is_what_the_config_says(tmp_path: Path, said: str | None) -> None:
    """Neither divided by the rank, nor the 20 that mlx-lm has for none."""
    base, path = base_of(tmp_path / "base"), write(tmp_path / "a", factors(), said, batch_size=4, quite_new={"x": 1})
    adaptertool.merge(base, [path], tmp_path / "out")
    a, b = load_file(path / "adapters.safetensors").values()
    exact = load(base)[f"{LAYER}.weight"].double() + 2 * (a.double() @ b.double()).T
    assert half_ulp_excess(load(tmp_path / "out")[f"{LAYER}.weight"], exact).max() <= 1 + 1e-6


@pytest.mark.parametrize("fine", ["lora", "dora"])
def test_an_embedding_is_not_turned(tmp_path: Path, fine: str) -> None:
    """Also where it has as many rows as columns, where only its name tells."""
    path = write_checkpoint(tmp_path / "base", {f"{EMBEDDING}.weight": torch.randn(IN, IN)})
    tensors = factors(EMBEDDING, (IN, IN)) | ({f"{EMBEDDING}.m": torch.rand(IN) + 1} if fine == "dora" else {})
    adapter = write(tmp_path / "a", tensors, fine)
    adaptertool.merge(path, [adapter], tmp_path / "out")
    a, b = (tensors[f"{EMBEDDING}.{name}"].double() for name in ("lora_a", "lora_b"))
    exact = load(path)[f"{EMBEDDING}.weight"].double() + 2 * a @ b
    if fine == "dora":
        exact *= (tensors[f"{EMBEDDING}.m"].double() / exact.norm(dim=1))[:, None]
    torch.testing.assert_close(load(tmp_path / "out")[f"{EMBEDDING}.weight"].double(), exact, rtol=1e-6, atol=1e-6)


def test_of_a_tied_model_the_head_stays_the_embedding(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", tie_word_embeddings=True)
    adapter = write(tmp_path / "a", {f"{EMBEDDING}.weight": torch.ones(VOCABULARY, IN)}, "full")
    adaptertool.merge(base, [adapter], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert load(tmp_path / "out").keys() == load(base).keys()


def test_layers_are_as_peft_has_them(tmp_path: Path) -> None:
    tensors = factors() | factors("lm_head", (IN, VOCABULARY))
    found = read_alone(Parsed(write(tmp_path / "a", tensors)))
    layer = found.layers[LAYER]
    assert (layer.rank, layer.scale, layer.pairs[0].inputs, layer.pairs[0].outputs) == (RANK, 2.0, IN, OUT)
    facts = adaptertool.inspect(tmp_path / "a").adapter
    assert facts is not None
    assert {module.name: module.shape for module in facts.modules}[LAYER] == (OUT, IN)
    assert facts.dtypes == {"F32": 4}


@pytest.mark.parametrize("kind", ["lora", "peft"])
def test_a_config_tells_the_format(tmp_path: Path, kind: str) -> None:
    """Both are called adapter_config.json."""
    path = write(tmp_path / "a", factors(), peft_type="LORA" if kind == "peft" else None)
    own = recognised(path)
    assert own is not None
    assert own.name == ("peft" if kind == "peft" else "mlx")


REFUSED = {
    "kind": ({"fine_tune_type": "adaptive"}, {}, "fine_tune_type adaptive is not known"),
    "kind a list": ({"fine_tune_type": ["lora"]}, {}, "is not known"),
    "no parameters": ({"lora_parameters": None}, {}, "no lora_parameters"),
    "mlx-vlm": ({"lora_parameters": None, "fine_tune_type": None, "rank": 4, "alpha": 8}, {}, "mlx-vlm"),
    "no scale": ({}, {"scale": None}, "has no scale, and none is assumed"),
    "alpha for the scale": ({}, {"scale": None, "alpha": 8}, "alpha 8 does not make one"),
    "scale a text": ({}, {"scale": "2"}, "must be a number"),
    "scale true": ({}, {"scale": True}, "must be a number"),
    "scale without bounds": ({}, {"scale": 1e400}, "JSON"),
    "scale of too many digits": ({}, {"scale": 10**400}, "is damaged"),
    "no rank": ({}, {"rank": None}, "rank of lora_parameters"),
    "rank 0": ({}, {"rank": 0}, "from 1 on"),
    "another rank": ({}, {"rank": 3}, "with rank 3"),
    "alpha": ({}, {"alpha": 16}, "multiplied the scale by alpha/rank"),
    "field": ({}, {"use_rs": True}, "use_rs"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_configs_that_are_refused(tmp_path: Path, case: str) -> None:
    fields, parameters, part = REFUSED[case]
    own = {name: value for name, value in (PARAMETERS | parameters).items() if value is not None}
    assert part in refusal(write(tmp_path / "a", factors(), **{"lora_parameters": own, **fields}))


def test_alpha_that_is_the_rank_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a", factors(), lora_parameters={**PARAMETERS, "alpha": RANK})
    assert read_alone(Parsed(path)).layers[LAYER].scale == 2


A, B, M = (f"{LAYER}.{name}" for name in ("lora_a", "lora_b", "m"))
STACK = "model.layers.0.mlp.switch_mlp.up_proj"
TENSORS = {
    "one factor": ("lora", {A: (IN, RANK)}, "has no lora_b"),
    "no magnitude": ("dora", {A: (IN, RANK), B: (RANK, OUT)}, "has no m"),
    "a magnitude": ("lora", {A: (IN, RANK), B: (RANK, OUT), M: (OUT,)}, "not known"),
    "as PEFT has them": ("lora", {A: (RANK, IN), B: (OUT, RANK)}, "they must be (n, 4) and (4, n)"),
    "of mlx-vlm": ("lora", {f"{LAYER}.A": (IN, RANK), f"{LAYER}.B": (RANK, OUT)}, "not known"),
    "whole": ("lora", {f"{LAYER}.weight": (OUT, IN)}, "not known"),
    "factors": ("full", {A: (IN, RANK), B: (RANK, OUT)}, "full"),
    "vectors": ("lora", {A: (RANK,), B: (RANK,)}, "must be"),
    "one stack": ("lora", {A: (2, RANK, IN), B: (RANK, OUT)}, "must be"),
    "stacks of what is no expert": ("lora", {A: (2, RANK, IN), B: (2, OUT, RANK)}, "such a stack is not known"),
    "experts": ("lora", {f"{STACK}.lora_a": (2, RANK, IN), f"{STACK}.lora_b": (3, OUT, RANK)}, "(experts, 4, in)"),
    "empty": ("lora", {A: (0, RANK), B: (RANK, OUT)}, "no elements"),
    "none": ("lora", {}, "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_refused(tmp_path: Path, case: str) -> None:
    kind, shapes, part = TENSORS[case]
    assert part in refusal(write(tmp_path / "a", {name: torch.ones(shape) for name, shape in shapes.items()}, kind))


def test_dora_of_experts_and_integers_are_refused(tmp_path: Path) -> None:
    stacks = {f"{STACK}.lora_a": torch.ones(2, RANK, IN), f"{STACK}.lora_b": torch.ones(2, OUT, RANK)}
    assert "dora of such a stack" in refusal(
        write(tmp_path / "a", {**stacks, f"{STACK}.m": torch.ones(2, OUT)}, "dora")
    )
    integers = {name: factor.to(torch.int32) for name, factor in factors().items()}
    assert "I32" in refusal(write(tmp_path / "b", integers))


def test_dora_of_an_embedding_is_merged_and_nothing_else(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a", factors(EMBEDDING, (VOCABULARY, IN)) | {f"{EMBEDDING}.m": torch.ones(VOCABULARY)}, "dora"
    )
    assert "each row of the vocabulary" in refusal(path)
    with pytest.raises(UnsupportedError, match="each row of the vocabulary"):
        adaptertool.convert(path, tmp_path / "out", to="peft")


def test_no_tensors_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a", factors())
    (path / "adapters.safetensors").unlink()
    assert "has no adapters.safetensors" in refusal(path)


def test_what_lies_beside(tmp_path: Path) -> None:
    base, path = base_of(tmp_path / "base"), write(tmp_path / "a", factors())
    for step in (100, 200):
        save_file(factors(), path / f"{step:07}_adapters.safetensors")
    notes = adaptertool.merge(base, [path], tmp_path / "out").notes
    assert [note for note in notes if "earlier steps" in note and "0000100_adapters" in note]
    save_file({"x": torch.ones(1)}, path / "value_head.safetensors")
    with pytest.raises(UnsupportedError, match="value_head"):
        adaptertool.merge(base, [path], tmp_path / "out", force=True)


def test_another_model_is_refused(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    with pytest.raises(MismatchError, match=r"lora_a must be 4×6, but it is F64 4×5"):
        adaptertool.merge(base, [write(tmp_path / "a", factors(shape=(IN - 1, OUT)))], tmp_path / "out")
    with pytest.raises(MismatchError, match="have no tensor in"):
        adaptertool.merge(base, [write(tmp_path / "b", factors("model.layers.7.x"))], tmp_path / "out")


FAULTS = {"scale-as-alpha": 0.5, "scale-ignored": 1.0, "scale-default": 20.0}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_how_the_scale_was_misread(tmp_path: Path, fault: str) -> None:
    base, path = base_of(tmp_path / "base"), write(tmp_path / "a", factors())
    wrong = write(
        tmp_path / "wrong",
        load_file(path / "adapters.safetensors"),
        lora_parameters={**PARAMETERS, "scale": FAULTS[fault]},
    )
    adaptertool.merge(base, [wrong], tmp_path / "out")
    report = adaptertool.verify(tmp_path / "out", base, [path])
    assert not report.ok
    assert {one.diagnosis for one in report.tensors if one.status == "wrong"} == {fault}


@pytest.mark.parametrize("square", [False, True])
def test_mlx_never_transposes(tmp_path: Path, square: bool) -> None:
    """GPT-2's layers are stored (in, out) by transformers, and (out, in) by MLX."""
    size = (IN, IN) if square else (OUT, IN)
    name, config = "h.0.attn.c_proj", {"model_type": "gpt2", "tie_word_embeddings": False}
    adapter = write(tmp_path / "a", factors(name, size[::-1]))
    a, b = (factor.double() for factor in load_file(adapter / "adapters.safetensors").values())
    for mlx in (False, True):
        weight = {f"{name}.weight": torch.randn(size if mlx else size[::-1])}
        base = write_checkpoint(tmp_path / f"base{mlx}", weight, config=config)
        save_file(weight, base / "model.safetensors", metadata={"format": "mlx" if mlx else "pt"})
        adaptertool.merge(base, [adapter], tmp_path / f"out{mlx}")
        change = 2 * (a @ b).T if mlx else 2 * a @ b
        merged = load(tmp_path / f"out{mlx}")[f"{name}.weight"].double()
        torch.testing.assert_close(merged, weight[f"{name}.weight"].double() + change, rtol=1e-6, atol=1e-6)


def test_what_mlx_stores_otherwise_is_refused_across(tmp_path: Path) -> None:
    """Convolutions, whose channels are last, and families whose numbers differ."""
    conv, norm = "model.patch.weight", "model.layers.0.input_layernorm.weight"
    tensors = {conv: torch.randn(4, 3, 3, 3), norm: torch.randn(6)}
    whole = write(tmp_path / "a", {conv: torch.zeros(4, 3, 3, 3)}, "full")
    peft = write_adapter(tmp_path / "peft", {norm: torch.ones(6)}, modules_to_save=["input_layernorm"])
    config = {"model_type": "qwen3_next", "tie_word_embeddings": False}
    for mlx in (False, True):
        base = write_checkpoint(tmp_path / f"base{mlx}", tensors, config=config)
        save_file(tensors, base / "model.safetensors", metadata={"format": "mlx" if mlx else "pt"})
    with pytest.raises(UnsupportedError, match="channels of convolutions last"):
        adaptertool.merge(tmp_path / "baseFalse", [whole], tmp_path / "out")
    with pytest.raises(UnsupportedError, match="converts the numbers"):
        adaptertool.merge(tmp_path / "baseTrue", [peft], tmp_path / "out")
    with pytest.raises(UnsupportedError, match="take both from MLX"):
        adaptertool.wise(tmp_path / "baseTrue", tmp_path / "baseFalse", tmp_path / "out", alphas=[0.5])
    adaptertool.merge(tmp_path / "baseTrue", [whole], tmp_path / "one")
    adaptertool.merge(tmp_path / "baseFalse", [peft], tmp_path / "other")


def test_an_index_beside_the_only_file(tmp_path: Path) -> None:
    """MLX writes one; of another it is stale."""
    base, path = base_of(tmp_path / "base", mlx=True), write(tmp_path / "a", factors())
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(load(base), "model.safetensors")}))
    adaptertool.merge(base, [path], tmp_path / "out")
    assert (tmp_path / "out" / index.name).read_text() == index.read_text()
    adaptertool.merge(tmp_path / "out", [path], tmp_path / "twice")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(load(base), "model-00001-of-00002.safetensors")}))
    with pytest.raises(InputError, match="remove the one that is stale"):
        adaptertool.merge(base, [path], tmp_path / "out", force=True)


def test_it_is_not_written_in_its_own_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already"):
        adaptertool.convert(write(tmp_path / "a", factors()), tmp_path / "out", to="mlx")
