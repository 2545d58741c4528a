"""Names in memory and on the disk: the table against transformers itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from conftest import FIXTURES, ROOT, load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from transformers.conversion_mapping import _build_checkpoint_conversion_mapping
from transformers.core_model_loading import GroupWeightRename, Inkling2IndexOffsetWeightRename, WeightConverter

import adaptertool
from adaptertool.errors import MismatchError, UnsupportedError, UsageError
from adaptertool.names import Names, Rule

TABLE = json.loads((ROOT / "adaptertool" / "names.json").read_text())
MARKS = [[rule for rule in rules if rule["target"] is None] for rules in TABLE["lists"]]
TRANSFORMS = [
    transform
    for transforms in _build_checkpoint_conversion_mapping().values()
    for transform in transforms
    if not isinstance(transform, WeightConverter | GroupWeightRename | Inkling2IndexOffsetWeightRename)
]


def plain(pattern: str) -> str:
    """A name that the pattern may match: its text without the signs of a regex."""
    return re.sub(r"\(\?[!<=:][^)]*\)|[\^$()\\?*+]", "", pattern.replace(r"\d+", "3").replace(".+", "x.0.y")).strip(".")


SAMPLES = sorted({plain(source) for transform in TRANSFORMS for source in transform.source_patterns})


def test_the_table_is_that_of_the_pinned_transformers() -> None:
    assert TABLE["transformers"] == transformers.__version__
    assert len(TABLE["architectures"]) > 300


def test_every_rule_of_transformers_is_applied_as_transformers_does() -> None:
    """The whole mapping is walked: each rule on names made from all rules, with and without a prefix."""
    names = [f"{prefix}{sample}.weight" for sample in SAMPLES for prefix in ("", "model.", "model.vision_tower.")]
    changed = 0
    for transform in TRANSFORMS:
        for scope in (None, "", "vision_tower"):
            transform.scope_prefix, transform.base_model_prefix = scope, None if scope is None else "model"
            rule = Rule(transform.compiled_sources, transform.target_patterns[0], scope, transform.base_model_prefix)
            for name in names:
                expected = transform.rename_source_key(name)[0]
                assert rule(name) == expected, (name, transform)
                changed += expected != name
    assert changed > 10 * len(TRANSFORMS)


def test_every_regex_of_the_table_compiles() -> None:
    for rules in TABLE["lists"]:
        for rule in rules:
            compiled = re.compile(rule["regex"])
            assert r"\1" not in (rule["target"] or "") or compiled.groups > 1


def names(*on_disk: str, architecture: str = "") -> Names:
    return Names(on_disk, {"architectures": [architecture]})


def test_names_of_both_ages() -> None:
    disk = "language_model.model.layers.0.self_attn.q_proj.weight"
    gemma = names(disk, "language_model.lm_head.weight", architecture="Gemma3ForConditionalGeneration")
    assert gemma.find("model.language_model.layers.0.self_attn.q_proj.weight") == disk
    assert gemma.find(disk) == disk
    assert gemma.find("lm_head.weight") == "language_model.lm_head.weight"
    assert gemma.find("model.layers.1.self_attn.q_proj.weight") is None


def test_with_and_without_the_prefix_of_the_head() -> None:
    assert names("encoder.layer.0.q.weight").find("bert.encoder.layer.0.q.weight") == "encoder.layer.0.q.weight"
    assert names("bert.encoder.layer.0.q.weight").find("encoder.layer.0.q.weight") == "bert.encoder.layer.0.q.weight"
    assert names("bert.encoder.layer.0.q.weight").find("roberta.encoder.layer.0.q.weight") is None


def test_a_name_as_it_stands_goes_before_one_with_a_prefix() -> None:
    both = names("model.layers.0.q.weight", "layers.0.q.weight")
    assert both.find("layers.0.q.weight") == "layers.0.q.weight"
    assert both.find("model.layers.0.q.weight") == "model.layers.0.q.weight"


def test_ambiguity_lists_the_candidates() -> None:
    with pytest.raises(MismatchError, match=r"can mean a\.q\.weight, b\.q\.weight; say which with --rename"):
        names("a.q.weight", "b.q.weight").find("q.weight")


@pytest.mark.parametrize("config", [None, {}, {"architectures": []}, {"architectures": 3}, {"architectures": ["X"]}])
def test_without_a_known_architecture_names_are_those_on_the_disk(config: dict[str, object] | None) -> None:
    assert Names(["a.b.weight"], config).find("a.b.weight") == "a.b.weight"


def test_rename(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"blocks.0.attn.q.weight": torch.randn(8, 6)})
    factors = lora_factors("layers.0.attn.query", (8, 6))
    adapter = write_adapter(tmp_path / "a", factors)
    with pytest.raises(MismatchError, match=r"nearest: blocks\.0\.attn\.q\.weight"):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    renames = [r"^layers\.(\d+)=>blocks.\1", r"query\.weight$=>q.weight"]
    adaptertool.merge(base, [adapter], tmp_path / "out", renames=renames)
    right = {name.replace("layers", "blocks").replace("query", "q"): factor for name, factor in factors.items()}
    adaptertool.merge(base, [write_adapter(tmp_path / "b", right)], tmp_path / "plain")
    assert same_bits(*(load(tmp_path / out)["blocks.0.attn.q.weight"] for out in ("out", "plain")))
    wrongs = {"abc": "regex=>", "(=>x": "no valid regex", "zzz=>y": "changes no name", "q=>\\7": "replacement"}
    for wrong, message in wrongs.items():
        with pytest.raises(UsageError, match=message):
            adaptertool.merge(base, [adapter], tmp_path / "o2", renames=[wrong])
    with pytest.raises(UsageError, match="for adapters"):
        adaptertool.wise(FIXTURES / "base", FIXTURES / "tuned", tmp_path / "o3", 0.5, renames=["a=>b"])


def test_two_modules_on_one_tensor_are_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"model.a.weight": torch.randn(8, 6)})
    factors = lora_factors("model.a", (8, 6)) | lora_factors("a", (8, 6))
    adapter = write_adapter(tmp_path / "a", factors)
    before = snapshot(tmp_path)
    with pytest.raises(MismatchError, match=r"both change model\.a\.weight"):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_what_is_other_in_memory_is_not_edited_by_its_name() -> None:
    """Numbers that are permuted on loading: the shape is the same, and the delta would be wrong in silence."""
    marked = {name for name, number in TABLE["architectures"].items() if number >= 0 and MARKS[number]}
    assert len(marked) > 5
    checked = 0
    for architecture in marked:
        for mark in MARKS[TABLE["architectures"][architecture]]:
            name = f"model.{plain(mark['regex'].split('>', 1)[1].split('|')[0]).removesuffix('!w')}"
            if Rule(re.compile(mark["regex"]), None, mark.get("scope"), mark.get("base")).matches(name):
                checked += 1
                with pytest.raises(UnsupportedError, match="not stored as the model has it in memory"):
                    names(name, architecture=architecture).find(name)
    assert checked > 2


def test_architectures_that_the_table_cannot_hold_are_refused() -> None:
    refused = [name for name, number in TABLE["architectures"].items() if number < 0]
    assert refused
    with pytest.raises(UnsupportedError, match=f"{refused[0]} are not supported yet"):
        names("a.weight", architecture=refused[0])


def test_the_readme_says_how_many() -> None:
    held = sum(number >= 0 for number in TABLE["architectures"].values())
    assert f"renamings of {held} architectures" in (ROOT / "README.md").read_text()
