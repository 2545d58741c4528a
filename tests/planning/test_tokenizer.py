"""Whose tokenizer and chat template the output has, where those beside an adapter are not the base's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adaptertool, load, lora_factors, write_adapter, write_checkpoint

import adaptertool as library
from adaptertool.errors import MismatchError, UsageError

Q, E = "model.layers.0.self_attn.q_proj", "model.embed_tokens.weight"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, "vocab_size": 10
}  # fmt: skip
VOCABULARY = {"model": {"vocab": {"a": 0, "b": 1}}}
SETTINGS = {"chat_template": "{{ base }}", "pad_token": "a"}


def put(folder: Path, **files: object) -> Path:
    """Files by name, with __ for the dot before the ending; what is no text is written as JSON."""
    for name, content in files.items():
        path = folder / name.replace("__", ".").replace("_IN_", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors = {f"{Q}.weight": torch.ones(8, 6), E: torch.ones(10, 6), "lm_head.weight": torch.ones(10, 6)}
    folder = write_checkpoint(tmp_path / "base", tensors, config=CONFIG)
    return put(folder, tokenizer__json=VOCABULARY, tokenizer_config__json=SETTINGS, tokenizer__model="pieces")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", lora_factors(Q, (8, 6)))


def note(base: Path, *adapters: Path, **options: Any) -> str:
    return "\n".join(library.prepare_merge(base, adapters, **options).notes)


def text(path: Path) -> str:
    return path.read_text()


def test_no_tokenizer_or_the_same_is_no_matter(base: Path, adapter: Path) -> None:
    assert note(base, adapter) == ""
    put(adapter, tokenizer_config__json=json.dumps(SETTINGS, indent=8, sort_keys=True), tokenizer__json=VOCABULARY)
    assert note(base, adapter) == ""


def test_a_template_counts_wherever_it_stands(base: Path, adapter: Path) -> None:
    put(adapter, tokenizer_config__json={"pad_token": "a"}, chat_template__jinja="{{ base }}")
    assert note(base, adapter) == ""
    put(adapter, chat_template__jinja="{{ other }}")
    assert "the chat template;" in note(base, adapter)


DIFFERENT: dict[str, tuple[dict[str, object], str]] = {
    "template alone": ({"chat_template__jinja": "{{ own }}"}, "the chat template"),
    "template in the settings": ({"tokenizer_config__json": SETTINGS | {"chat_template": "x"}}, "the chat template"),
    "template for processors": ({"chat_template__json": {"chat_template": "x"}}, "the chat template"),
    "no template": ({"tokenizer_config__json": {"pad_token": "a"}}, "the chat template (none there)"),
    "another key": ({"tokenizer_config__json": SETTINGS | {"pad_token": "b"}}, "tokenizer_config.json (pad_token)"),
    "vocabulary": ({"tokenizer__json": {"model": {}}}, "tokenizer.json"),
    "pieces": ({"tokenizer__model": "others"}, "tokenizer.model"),
    "added": ({"added_tokens__json": {"<x>": 2}}, "added_tokens.json (only there)"),
    "more templates": ({"additional_chat_templates_IN_tool__jinja": "x"}, "additional_chat_templates/tool.jinja (only"),
    "broken": ({"tokenizer_config__json": "{"}, "tokenizer_config.json"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_another_tokenizer_is_said(base: Path, adapter: Path, tmp_path: Path, case: str) -> None:
    files, part = DIFFERENT[case]
    put(adapter, **files)
    said = note(base, adapter)
    assert f"{adapter} has another tokenizer or chat template than the base: " in said and part in said
    assert "--tokenizer adapter" in said and note(base, adapter, tokenizer="base") == ""
    library.merge(base, [adapter], tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        assert text(tmp_path / "out" / name) == text(base / name)
    manifest = json.loads(text(tmp_path / "out" / "adaptertool.manifest.json"))
    assert "tokenizer" not in manifest["recipe"]
    assert set(manifest["inputs"]["sources"][0]) == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_tokenizer_of_the_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Whole: what the base has besides would speak of other tokens."""
    own = {"model": {"vocab": {"a": 0, "b": 1, "c": 2}}}
    put(adapter, tokenizer__json=own, tokenizer_config__json={"pad_token": "c"}, chat_template__jinja="{{ own }}")
    put(base, special_tokens_map__json={"pad_token": "a"})
    out = tmp_path / "out"
    done = adaptertool("merge", base, adapter, "-o", out, "--tokenizer", "adapter")
    assert done.returncode == 0
    assert f"the tokenizer is that of {adapter}: chat_template.jinja, tokenizer.json" in done.stderr
    assert "left out of the base's: special_tokens_map.json, tokenizer.model" in done.stderr
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert text(out / name) == text(adapter / name)
    assert not (out / "tokenizer.model").exists() and not (out / "special_tokens_map.json").exists()
    manifest = json.loads(text(out / "adaptertool.manifest.json"))
    assert manifest["recipe"]["tokenizer"] == "adapter"
    assert "tokenizer.json" in manifest["inputs"]["sources"][0] and "tokenizer.json" in manifest["inputs"]["base"]
    assert adaptertool("verify", out).returncode == 0 and adaptertool("verify", out, base, adapter).returncode == 0
    sweep = library.wise(base, adapter, tmp_path / "sweep", "0,0.5", tokenizer="adapter")
    assert all(text(Path(folder) / "chat_template.jinja") == "{{ own }}" for folder in sweep.outputs)


def test_what_stays_of_the_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Where the vocabulary is the same its other forms are right as well; a template alone replaces templates."""
    put(adapter, tokenizer__json=VOCABULARY, chat_template__jinja="{{ own }}")
    put(base, chat_template__json={"chat_template": "old"})
    report = library.merge(base, [adapter], tmp_path / "out", tokenizer="adapter")
    (said,) = report.notes
    assert "left out of the base's: chat_template.json; kept of the base's: tokenizer.model, tokenizer_co" in said
    assert text(tmp_path / "out" / "tokenizer.model") == "pieces"


def test_between_checkpoints(base: Path, tmp_path: Path) -> None:
    tuned = put(write_checkpoint(tmp_path / "tuned", load(base), config=CONFIG), chat_template__jinja="{{ own }}")
    plan = library.prepare_wise(base, tuned, 0.5)
    assert any(f"{tuned} has another tokenizer or chat template" in said for said in plan.notes)
    library.wise(base, tuned, tmp_path / "out", 0.5, tokenizer="adapter")
    assert text(tmp_path / "out" / "chat_template.jinja") == "{{ own }}"
    library.merge(base, [tuned, tuned], tmp_path / "ties", method="linear", tokenizer="adapter")
    assert text(tmp_path / "ties" / "chat_template.jinja") == "{{ own }}"


@pytest.mark.parametrize("tokenizer", [None, "base", "adapter"])
@pytest.mark.parametrize("has", [True, False], ids=["with a tokenizer", "without one"])
def test_where_the_vocabulary_grew(base: Path, tmp_path: Path, tokenizer: str | None, has: bool) -> None:
    adapter = write_adapter(tmp_path / "a", {E: torch.ones(12, 6), "lm_head.weight": torch.ones(12, 6)})
    if has:
        put(adapter, tokenizer__json={"model": {"vocab": {"z": 0}}})
    elif tokenizer == "adapter":
        with pytest.raises(UsageError, match="there is no tokenizer in"):
            library.prepare_merge(base, [adapter], tokenizer=tokenizer)
        return
    report = library.merge(base, [adapter], tmp_path / "out", tokenizer=tokenizer)
    taken = has and tokenizer != "base"
    assert text(tmp_path / "out" / "tokenizer.json") == text((adapter if taken else base) / "tokenizer.json")
    said = "\n".join(report.notes)
    if tokenizer is None:
        assert ("as its vocabulary is" if has else "beside the adapter is no tokenizer for it") in said


def test_several_adapters(base: Path, adapter: Path, tmp_path: Path) -> None:
    plain = write_adapter(tmp_path / "plain", lora_factors(Q, (8, 6)))
    other = put(write_adapter(tmp_path / "other", lora_factors(Q, (8, 6))), chat_template__jinja="{{ other }}")
    put(adapter, chat_template__jinja="{{ own }}")
    assert str(adapter) in note(base, plain, adapter, tokenizer="adapter")
    assert note(base, adapter, other).count("has another tokenizer") == 2
    with pytest.raises(MismatchError, match="have different tokenizers"):
        library.prepare_merge(base, [adapter, other], tokenizer="adapter")


def test_where_there_is_no_place_for_it(base: Path, adapter: Path) -> None:
    put(adapter, chat_template__jinja="{{ own }}")
    assert note(base / "model.safetensors", adapter) == ""
    with pytest.raises(UsageError, match="is one file"):
        library.prepare_merge(base / "model.safetensors", [adapter], tokenizer="adapter")
    with pytest.raises(UsageError, match="without --as-adapter"):
        library.prepare_wise(base, adapter, 0.5, as_adapter=True, tokenizer="adapter")
    with pytest.raises(UsageError, match="base or adapter"):
        library.prepare_merge(base, [adapter], tokenizer="mine")
