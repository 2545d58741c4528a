"""`inspect` on the command line: its text, its JSON, its exit codes; and what it says of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, adaptertool, load, lora_factors, main_here, write_adapter, write_checkpoint
from safetensors.torch import load_file, save_file
from samples import SAMPLES

from adaptertool.architectures.families import family_of
from adaptertool.tasks.inspect import inspect

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
BASE = FIXTURES / "base"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[object, str, str]:
        code = main_here(["inspect", *map(str, arguments)], monkeypatch)
        return code, *capsys.readouterr()

    return call


def test_text_of_an_adapter(run: Any) -> None:
    code, out, err = run(FIXTURES / "lora", "--base", BASE, "--tokens", 1000, "--nats-per-token", 1.5)
    assert code == 0 and not err
    lines = out.splitlines()
    assert lines[0] == f"inspect {FIXTURES / 'lora'}: an adapter, LORA, written by PEFT 0.21.2"
    assert "  modules  28 lora; rank 8, scale 2 (alpha/r)" in lines
    assert f"  fits     {BASE}: every module has its tensor there, and the shapes agree" in lines
    assert "           the data has 2,164 bits, 0.0196 times that: room for it" in lines
    table = [line.split() for line in lines]
    assert ["attention", "16", "21,504", "100.0%"] in table and ["all", "28", "55,296", "80.4%"] in table
    assert [row[0] for row in table if row[1:2] == ["(4)"]] == [
        *(f"model.layers.*.mlp.{name}_proj" for name in ("down", "gate", "up")),
        *(f"model.layers.*.self_attn.{name}_proj" for name in "koqv"),
    ]
    assert sum(line.startswith("  rule ") for line in lines) == 2


def test_every_module_on_a_line_and_no_spectra(run: Any) -> None:
    for options in (["-v"], ["-v", "--no-spectra"]):
        code, out, _ = run(FIXTURES / "lora", *options)
        assert code == 0 and out.count("model.layers.3.") == 7
    _, out, _ = run(FIXTURES / "lora", "--no-spectra")
    assert "model.layers.*.mlp.up_proj  (4)" in out and "256×96, rank 8" in out


def test_long_tables_are_cut(run: Any, tmp_path: Path) -> None:
    factors: dict[str, torch.Tensor] = {}
    for number in range(40):
        factors |= lora_factors(f"m.part{number}", (6, 6))
    _, out, _ = run(write_adapter(tmp_path / "a", factors))
    assert "and 16 more (-v shows all)" in out


def test_json(run: Any) -> None:
    code, out, err = run(FIXTURES / "lora", "--base", BASE, "--json", "--episodes", 1e9)
    report = json.loads(out)
    assert (code, err, report["schema"], report["what"], report["fits"]) == (0, "", "inspect/1", "adapter", True)
    adapter = report["adapter"]
    assert len(adapter["modules"]) == 28 and len(adapter["modules"][0]["spectrum"]["values"]) == 8
    assert adapter["capacity"]["verdict"] == "short" and report["findings"][-1].startswith("capacity: ")
    code, out, _ = run(BASE, "--json", "-q")
    assert code == 0 and json.loads(out)["checkpoint"]["parameters"] == 504_672


def test_what_does_not_fit(run: Any, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors("model.layers.9.self_attn.q_proj", (8, 6)))
    code, out, _ = run(adapter, "--base", BASE)
    assert code == 1 and "  refused  merge refuses it: " in out and "model.layers.9.self_attn.q_proj" in out
    other = write_checkpoint(tmp_path / "other", {"a.weight": torch.ones(2, 2)})
    code, out, _ = run(other, "--base", BASE)
    assert code == 1 and "  refused  wise refuses it: " in out
    assert run(FIXTURES / "tuned", "--base", BASE)[0] == 0


def test_notes_of_a_merge(run: Any, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (96, 96)), base_model_name_or_path="org/else")
    code, _, err = run(adapter, "--base", BASE)
    assert code == 0 and "was trained on org/else" in err
    assert run(adapter, "--base", BASE, "-q")[1:] == ("", "")


def test_what_is_neither(run: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "file.bin").write_bytes(b"x")
    (tmp_path / "short.safetensors").write_bytes(b"x")
    for name, word in {
        "none": "does not exist",
        "empty": "has neither model.safetensors",
        "half": "has no adapter_model.safetensors",
        "file.bin": "neither a directory nor a .safetensors file",
        "short.safetensors": "short.safetensors",
    }.items():
        code, out, err = run(tmp_path / name)
        assert code == 3 and not out and word in err and "Traceback" not in err
    code, _, err = run(FIXTURES / "lora", "--base", FIXTURES / "rslora")
    assert code == 3 and "is an adapter, not a checkpoint" in err
    code, _, err = run(BASE, "--episodes", 3)
    assert code == 2 and "for adapters" in err
    assert run(FIXTURES / "lora", "--tokens", 3)[0] == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": None}, {"peft_type": ["LORA"]}, {"peft_type": {"a": 1}}, {"r": 10**400}, {"r": None}, {"r": True},
        {"lora_alpha": 10**400}, {"lora_alpha": "8"}, {"peft_version": 3}, {"base_model_name_or_path": ["x"]},
        {"init_lora_weights": {"a": 1}}, {"use_rslora": "yes"}, {"r": 3}, {"rank_pattern": 3},
    ],
    ids=str,
)  # fmt: skip
def test_configs_gone_wrong_are_described(run: Any, tmp_path: Path, fields: dict[str, Any]) -> None:
    code, out, err = run(write_adapter(tmp_path / "a", lora_factors(Q, (8, 6)), **fields))
    assert code == 0 and Q in out and not err
    assert ("refused" in out) == (not fields.keys() & {"base_model_name_or_path", "peft_version"})


def test_names_that_would_harm_a_terminal(run: Any, tmp_path: Path) -> None:
    evil = "model.\x1b[31mred"
    fields = {"peft_version": "\x1b[0m", "base_model_name_or_path": "\x07"}
    adapter = write_adapter(tmp_path / "a", lora_factors(evil, (8, 6)), **fields)
    config = {"model_type": "\x1b]0;x", "architectures": "\x1b"}
    base = write_checkpoint(tmp_path / "b", {evil: torch.ones(3)}, config=config)
    for path, *options in ((adapter,), (adapter, "-v"), (adapter, "--no-spectra"), (base,), (base, "-v")):
        code, out, _ = run(path, *options)
        assert code == 0 and all(line.isprintable() for line in out.splitlines())


# Checkpoints


def test_checkpoint_adds_up() -> None:
    facts, tensors = inspect(BASE).checkpoint, load(BASE)
    assert facts is not None
    for parts in (facts.shards, facts.dtypes, facts.families):
        assert sum(part.tensors for part in parts) == facts.tensors == len(tensors)
        assert sum(part.parameters for part in parts) == facts.parameters == sum(t.numel() for t in tensors.values())
        assert sum(part.bytes for part in parts) == sum(tensor.nbytes for tensor in tensors.values())
    assert facts.bytes == sum(file.stat().st_size for file in BASE.glob("*.safetensors"))
    assert facts.config["architectures"] == ["LlamaForCausalLM"] and facts.tied == "no" and facts.quantised is None
    assert [part.name for part in facts.shards] == sorted(file.name for file in BASE.glob("*.safetensors"))


def test_manifest_and_what_changed_since(run: Any, tmp_path: Path) -> None:
    done = adaptertool("merge", BASE, FIXTURES / "lora", FIXTURES / "rslora", "-w", 1, "-w", -0.5, "-o", tmp_path / "m")
    assert done.returncode == 0
    _, out, _ = run(tmp_path / "m")
    assert (
        "made by  adaptertool 0.1.0: command merge, base base, sources lora 1 rslora -0.5, alphas 1, precision" in out
    )
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    (tmp_path / "m" / "generation_config.json").unlink()
    _, out, _ = run(tmp_path / "m")
    assert "CHANGED since: generation_config.json, tokenizer.json" in out
    (tmp_path / "m" / "adaptertool.manifest.json").write_text("{}")
    assert run(tmp_path / "m")[0] == 3


def test_parts_quantised_tied_and_stray(run: Any, tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": torch.ones(8, 4), f"{UP}.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True,
        "text_config": {"num_hidden_layers": 3},
        "quantization_config": {"quant_method": "fp8"},
    }  # fmt: skip
    base = write_checkpoint(tmp_path / "b", tensors, config=config)
    (base / "pytorch_model.bin").write_bytes(b"x")
    code, out, _ = run(base)
    assert code == 0 and "hidden_layers 3" in out and "quantised: " in out and "fp8" in out
    assert "left behind by a merge: pytorch_model.bin" in out and "F8_E4M3" in out and "lm_head" in out


def test_adapter_file_without_its_config(run: Any) -> None:
    code, out, _ = run(FIXTURES / "lora" / "adapter_model.safetensors")
    assert code == 0 and "finding  its tensors are those of an adapter: give the directory with its config" in out


FAMILIES = {
    "attention": [Q, "transformer.h.0.attn.c_attn", "encoder.layer.3.attention.output.dense", "layers.0.attention.wo",
                  "model.layers.0.self_attn.qkv_proj", "decoder.block.0.layer.0.SelfAttention.q",
                  "transformer.h.0.self_attention.query_key_value"],
    "MLP": [UP, "transformer.h.0.mlp.c_fc", "encoder.layer.3.intermediate.dense", "encoder.layer.3.output.dense",
            "layers.0.feed_forward.w1", "decoder.block.0.layer.1.DenseReluDense.wi_0", "model.decoder.layers.0.fc1"],
    "experts": ["model.layers.0.mlp.experts.7.down_proj", "model.layers.0.mlp.shared_expert.up_proj",
                "model.layers.0.block_sparse_moe.experts.1.w2", "model.layers.0.mlp.experts.gate_up_proj"],
    "embeddings": ["model.embed_tokens", "transformer.wte", "shared", "bert.embeddings.word_embeddings"],
    "norms": ["model.norm", "model.layers.0.input_layernorm", "transformer.h.0.ln_1",
              "encoder.layer.0.output.LayerNorm"],
    "heads": ["lm_head", "score", "classifier", "output"],
    "other": ["x", "model.layers.0.mixer.in_proj", "model.layers.0.mixer.A_log"],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    for name in FAMILIES[family]:
        assert family_of(name) == family_of(f"{name}.weight") == family, name


@pytest.mark.parametrize(
    ("name", "title", "scale"),
    [
        ("peft", "LORA", "2 (alpha/r)"),
        ("kohya", "networks.lora, format kohya, written by sd-scripts abc1", "0.5 (alpha/r)"),
        ("mlx", "lora, format mlx", "2 (lora_parameters.scale)"),
        ("gguf", "lora, format gguf", "2 (alpha/r)"),
    ],
)
def test_each_format_says_what_it_is(tmp_path: Path, run: Any, name: str, title: str, scale: str) -> None:
    path = SAMPLES[name].make(tmp_path / {"kohya": "a.safetensors", "gguf": "a.gguf"}.get(name, "a"))
    if name == "kohya":
        told = {"ss_network_module": "networks.lora", "ss_sd_scripts_commit_hash": "abc1"}
        save_file(load_file(path), path, metadata=told)
    code, out, _ = run(path)
    lines = out.splitlines()
    assert code == 0 and lines[0] == f"inspect {path}: an adapter, {title}"
    assert lines[1].endswith(f"scale {scale}")


def test_scales_that_no_alpha_makes(tmp_path: Path, run: Any) -> None:
    """A single file without alphas has the scale 1; of metadata, an alpha is one if it tells the scale."""
    path = SAMPLES["kohya"].make(tmp_path / "a.safetensors")
    plain = {name: tensor for name, tensor in load_file(path).items() if not name.endswith(".alpha")}
    save_file(plain, path, metadata={"ss_network_module": "networks.lora", "ss_network_alpha": "1"})
    _, out, _ = run(path)
    assert "scale 1 (no alpha is given)" in out
