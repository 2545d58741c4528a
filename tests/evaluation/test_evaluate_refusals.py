"""What `evaluate` refuses or notes, and that it runs alone: no network, no code of a checkpoint."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
import torch
from conftest import FIXTURES, load, lora_factors, main_here, write_adapter
from models_on_prompts import LORA, save
from safetensors.torch import save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import adaptertool
from adaptertool.errors import InputError, MismatchError, NonFiniteError, UnsupportedError, UsageError
from adaptertool.evaluation.loading import alone

pytestmark = pytest.mark.filterwarnings("ignore")

# --- what does not fit ---


def test_wrong_calls(tmp_path: Path) -> None:
    base: Any = FIXTURES / "base"
    calls: list[tuple[dict[str, Any], str]] = [
        ({"adapters": []}, "nothing to compare BASE with"),
        ({"adapters": "path"}, "must be lists"),
        ({"merged": "path"}, "must be lists"),
        ({"loss": "first"}, "loss is last-token or sequence"),
        ({"generate": -1}, "0 to 4,096 tokens"),
        ({"weights": [1, 2]}, "2 weights for 1 adapter"),
        ({"compose": "no"}, "compose is"),
        ({"fail_above": "nan", "merged": [base]}, "not a finite number"),
        ({"fail_above": -1, "merged": [base]}, "0 or more"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
        ({"device": "meta"}, "computes nothing"),
    ]
    for options, message in calls:
        with pytest.raises(UsageError, match=message):
            adaptertool.evaluate(base, **{"adapters": [LORA], "prompts": tmp_path / "p"} | options)


def test_missing_extra(places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    code = main_here(["evaluate", str(places / "base"), str(LORA), "--prompts", str(places / "prompts")], monkeypatch)
    assert code == 2
    assert "this needs torch and transformers: pip install 'adaptertool[model]'" in capsys.readouterr().err


def copy_of(path: Path, to: Path) -> Path:
    shutil.copytree(path, to)
    return to


def test_folders_that_are_no_models(places: Path, tmp_path: Path) -> None:
    def refused(message: str, base: Path, *merged: Path, kind: type[Exception] = InputError) -> None:
        with pytest.raises(kind, match=message):
            adaptertool.evaluate(base, [LORA], merged=merged, prompts=places / "prompts", generate=0)

    refused("no-such/model is no directory with a config.json", Path("no-such/model"))
    refused("is no directory with a config.json", FIXTURES / "base", LORA)
    mixed = copy_of(FIXTURES / "base", tmp_path / "mixed")
    shutil.copy(LORA / "adapter_config.json", mixed)
    refused("is an adapter; give it after BASE", FIXTURES / "base", mixed)
    refused("has no tokenizer that transformers can load without a network", FIXTURES / "edits" / "ft")

    lacking = copy_of(places / "base", tmp_path / "lacking")
    tensors = load(lacking)
    gone = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
    refused(r"lacks 1 weights of LlamaForCausalLM: model\.layers\.1\.mlp\.up_proj\.weight", lacking)
    save_file(tensors | {"model.layers.1.mlp.up_proj.weight": gone[:9]}, lacking / "model.safetensors")
    refused("other shapes|cannot be loaded", lacking)

    broken = copy_of(places / "base", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no tensors")
    refused("broken cannot be loaded by transformers as a causal language model", broken)
    pickled = copy_of(places / "base", tmp_path / "pickled")
    torch.save(load(pickled), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    refused("pickled cannot be loaded", pickled)

    naned = copy_of(places / "base", tmp_path / "naned")
    tensors = load(naned)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, naned / "model.safetensors", metadata={"format": "pt"})
    refused("naned gives logits that are not finite, on line 1", FIXTURES / "base", naned, kind=NonFiniteError)


def test_adapter_for_another_model(places: Path, tmp_path: Path) -> None:
    wide = write_adapter(tmp_path / "wide", lora_factors("model.layers.0.mlp.up_proj", (300, 96)))
    deep = write_adapter(tmp_path / "deep", lora_factors("model.layers.9.mlp.up_proj", (256, 96)))
    for adapter in (wide, deep):
        with pytest.raises(InputError, match=r"mlp\.up_proj"):
            adaptertool.evaluate(places / "base", [adapter], prompts=places / "prompts", generate=0)


def small(folder: Path, **fields: Any) -> Path:
    config = {"vocab_size": 512, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64} | fields
    return save(GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=1)), folder)


def test_models_that_cannot_take_the_lines(places: Path, tmp_path: Path) -> None:
    def refused(message: str, model: Path, kind: type[Exception] = MismatchError, generate: int = 0) -> None:
        with pytest.raises(kind, match=message):
            adaptertool.evaluate(places / "base", merged=[model], prompts=places / "prompts", generate=generate)

    short = small(tmp_path / "short", n_positions=16)
    refused("short takes 16 tokens, and line 1 of the prompts has ", short, generate=12)
    refused("knows 64 tokens, and line 1 of the prompts has token", small(tmp_path / "few", vocab_size=64))
    refused("gives logits of 600 tokens", small(tmp_path / "many", vocab_size=600))


def test_what_a_model_raises_is_explained(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise ValueError("no such rope\nmore")

    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", fail)
    with pytest.raises(UnsupportedError, match=r"/lora cannot be run .* on line 1 of the prompts: no such rope$"):
        adaptertool.evaluate(places / "base", [LORA], prompts=places / "prompts")


def test_another_tokenizer_is_told(places: Path, tmp_path: Path) -> None:
    other = copy_of(places / "merged", tmp_path / "other")
    same = copy_of(places / "merged", tmp_path / "same")
    for folder in (other, same):
        tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "base")
        if folder == other:
            tokenizer.add_tokens(["baker"])
        tokenizer.save_pretrained(folder)
    report = adaptertool.evaluate(places / "base", merged=[other, same], prompts=places / "prompts", generate=0)
    assert report.notes == (
        f"{other}: its own tokenizer makes other tokens of 1 lines (first of line 2); all models are given the tokens "
        "of the base's",
    )


# --- alone ---


def test_no_network_and_no_code_of_a_checkpoint(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    planted = copy_of(places / "base", tmp_path / "planted")
    config = json.loads((planted / "config.json").read_text())
    (planted / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (planted / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    report = adaptertool.evaluate(planted, [LORA], prompts=places / "prompts", generate=2)
    assert report.ok
    (planted / "config.json").write_text(json.dumps(config | {"auto_map": auto, "model_type": "mine"}))
    with pytest.raises(InputError, match="planted"):
        adaptertool.evaluate(planted, [LORA], prompts=places / "prompts", generate=2)
    for kernel in ("kernels-community/flash-attn", "someone/kernel"):
        (planted / "config.json").write_text(json.dumps(config | {"attn_implementation": kernel}))
        with pytest.raises(InputError, match="planted cannot be loaded"):
            adaptertool.evaluate(planted, [LORA], prompts=places / "prompts", generate=2)
    assert not (tmp_path / "ran").exists()
    with alone():
        assert huggingface_hub.is_offline_mode()
    assert not huggingface_hub.is_offline_mode()
