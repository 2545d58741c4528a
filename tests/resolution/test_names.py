"""Names in memory and on the disk: the table against transformers itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from conftest import FIXTURES, ROOT, load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from long_tests import STEP
from transformers.conversion_mapping import _build_checkpoint_conversion_mapping
from transformers.core_model_loading import GroupWeightRename, Inkling2IndexOffsetWeightRename, WeightConverter

import adaptertool
from adaptertool.architectures.conversion import Piece, Rule
from adaptertool.errors import MismatchError, UnsupportedError, UsageError
from adaptertool.resolution.names import Names

TABLE = json.loads((ROOT / "adaptertool" / "architectures" / "names.json").read_text())
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
    for number, transform in enumerate(TRANSFORMS):
        for scope in (None, "", "vision_tower"):
            transform.scope_prefix, transform.base_model_prefix = scope, None if scope is None else "model"
            rule = Rule(transform.compiled_sources, transform.target_patterns[0], scope, transform.base_model_prefix)
            for name in names[number % STEP :: STEP]:
                expected = transform.rename_source_key(name)[0]
                assert rule(name) == expected, (name, transform)
                changed += expected != name
    assert changed > 10 * len(TRANSFORMS) / STEP


def test_every_regex_of_the_table_compiles() -> None:
    for rules in TABLE["lists"]:
        for rule in rules:
            compiled = re.compile(rule["regex"])
            assert r"\1" not in (rule["target"] or "") or compiled.groups > 1


def names(*on_disk: str, architecture: str = "", family: str = "") -> Names:
    return Names(on_disk, {"architectures": [architecture], "model_type": family})


def find(table: Names, *wanted: str) -> list[str | None]:
    found = table.find_all([(name, False) for name in wanted])[0]
    assert all(pieces is None or pieces == (Piece(pieces[0].disk),) for pieces in found)
    return [None if pieces is None else pieces[0].disk for pieces in found]


def test_names_of_both_ages() -> None:
    disk = "language_model.model.layers.0.self_attn.q_proj.weight"
    gemma = names(disk, "language_model.lm_head.weight", architecture="Gemma3ForConditionalGeneration")
    assert find(gemma, "model.language_model.layers.0.self_attn.q_proj.weight") == [disk]
    assert find(gemma, disk) == [disk]
    assert find(gemma, "lm_head.weight") == ["language_model.lm_head.weight"]
    assert find(gemma, "model.layers.1.self_attn.q_proj.weight") == [None]


def test_with_and_without_the_prefix_of_the_head() -> None:
    """One change for all layers, and it is said."""
    bare, whole = "encoder.layer.0.q.weight", "bert.encoder.layer.0.q.weight"
    for disk, wanted, how in ((bare, whole, "stripped"), (whole, bare, "added")):
        found = names(disk, family="bert").find_all([(wanted, False)])
        assert (found[0], str(found[1])) == ([(Piece(disk),)], f"the prefix bert {how}")
    assert find(names(whole), "roberta.encoder.layer.0.q.weight") == [None]
    table = names(whole, "bert.encoder.layer.1.q.weight", "classifier.weight", family="bert")
    found = table.find_all([(bare, False), ("classifier.weight", True)])[0]
    assert found == [(Piece(whole),), (Piece("classifier.weight"),)]
    assert find(table, bare, "encoder.layer.7.q.weight") == [None, None]
    assert find(table, whole, "encoder.layer.1.q.weight") == [whole, None]  # no mixture of with and without


VISION = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
OLD, NEW = (f"{prefix}.layers.0.self_attn.q_proj.weight" for prefix in ("language_model.model", "model.language_model"))
ALONE = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("name", ["Llava", "Gemma3", "PaliGemma", "Mistral3", "Qwen2VL", "Qwen2_5_VL"])
def test_names_of_transformers_4_in_checkpoints_of_5(name: str) -> None:
    """Also of the language model by itself: the vision tower has layers of the same names, and is never meant."""
    qwen, architecture = "Qwen" in name, f"{name}ForConditionalGeneration"
    vision, older = ("visual.blocks.0.attn.qkv.weight", ALONE) if qwen else (VISION, OLD)
    table = names(NEW, f"model.{vision}", "lm_head.weight", architecture=architecture)
    assert find(table, older, vision) == [NEW, f"model.{vision}"]
    assert find(table, NEW) == [NEW]
    assert find(table, ALONE, "lm_head.weight") == [NEW, "lm_head.weight"]
    before = names(
        older, vision, "lm_head.weight" if qwen else "language_model.lm_head.weight", architecture=architecture
    )
    assert find(before, ALONE) == find(before, NEW) == find(before, older) == [older]


def test_the_language_model_by_itself() -> None:
    """Onto a model of an architecture without rules; and the change is said."""
    table = names(NEW, "model.visual.blocks.0.attn.qkv.weight", "lm_head.weight", architecture="Qwen3VLForX")
    found, change = table.find_all([(ALONE, False), ("lm_head.weight", False)])
    assert found == [(Piece(NEW),), (Piece("lm_head.weight"),)]
    assert str(change) == "the prefix model.language_model added"
    assert find(names(ALONE, "lm_head.weight"), NEW, "lm_head.weight") == [ALONE, "lm_head.weight"]
    assert find(names(ALONE), OLD) == [ALONE]
    assert find(table, ALONE, "model.layers.7.q_proj.weight") == [None, None]  # all, or nothing
    two = names(NEW, NEW.replace("language_model", "text_model"))
    with pytest.raises(MismatchError, match=r"model\.language_model added and with the prefix model\.text_model added"):
        find(two, ALONE)


@pytest.mark.parametrize(
    "disk",
    [VISION, f"model.{VISION}", "vision_tower.model.layers.0.self_attn.q_proj.weight",
     "model.visual.layers.0.self_attn.q_proj.weight", "audio_tower.model.layers.0.self_attn.q_proj.weight"],
)  # fmt: skip
def test_another_tower_is_never_taken_for_the_language_model(disk: str) -> None:
    assert find(names(disk), ALONE) == [None]
    assert find(names(ALONE), disk) == [None]


def test_a_vision_model_by_itself() -> None:
    alone = VISION.removeprefix("vision_tower.")
    assert find(names(VISION, OLD), alone) == [VISION]
    assert find(names(VISION, OLD), alone.removeprefix("vision_model.")) == [None]


def test_norms_of_older_checkpoints() -> None:
    gamma = "bert.encoder.layer.0.output.LayerNorm.gamma"
    table = names(gamma, gamma.replace("gamma", "beta"))
    assert find(table, gamma.replace("gamma", "weight"), gamma.replace("gamma", "bias")) == [
        gamma, gamma.replace("gamma", "beta")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("disk", "wanted"),
    [
        ("encoder.layers.0.q_proj.weight", "text_model.encoder.layers.0.q_proj.weight"),
        ("vision_model.encoder.layers.0.q_proj.weight", "encoder.layers.0.q_proj.weight"),
        ("decoder.layers.0.q_proj.weight", "layers.0.q_proj.weight"),
        ("layers.0.q_proj.weight", "encoder.layers.0.q_proj.weight"),
    ],
)
def test_a_part_of_a_model_is_no_prefix(disk: str, wanted: str) -> None:
    """The other tower has the same shapes: a wrong one would be changed in silence."""
    for family in ("siglip", "siglip_vision_model", "bart", ""):
        assert find(names(disk, family=family), wanted) == [None]


def test_a_name_as_it_stands_goes_before_one_with_a_prefix() -> None:
    both = names("model.layers.0.q.weight", "layers.0.q.weight")
    assert find(both, "layers.0.q.weight") == ["layers.0.q.weight"]
    assert find(both, "model.layers.0.q.weight") == ["model.layers.0.q.weight"]


def test_ambiguity_lists_the_candidates() -> None:
    with pytest.raises(MismatchError, match="the prefix model added and with the prefix transformer added; say which"):
        find(names("model.q.weight", "transformer.q.weight"), "q.weight")
    two = ["language_model.lm_head.weight", "lm_head.weight"]
    with pytest.raises(
        MismatchError, match=r"lm_head\.weight can mean language_model\.lm_head\.weight, lm_head\.weight"
    ):
        find(names(*two, architecture="Gemma3ForConditionalGeneration"), "lm_head.weight")


@pytest.mark.parametrize("config", [None, {}, {"architectures": []}, {"architectures": 3}, {"architectures": ["X"]}])
def test_without_a_known_architecture_names_are_those_on_the_disk(config: dict[str, object] | None) -> None:
    assert find(Names(["a.b.weight"], config), "a.b.weight") == ["a.b.weight"]


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
    with pytest.raises(UsageError, match="changes no name"):
        adaptertool.wise(FIXTURES / "base", FIXTURES / "tuned", tmp_path / "o3", 0.5, renames=["a=>b"])


def test_two_modules_on_one_tensor_are_refused(tmp_path: Path) -> None:
    """One module by its name of transformers 4, the other by that of 5."""
    disk, memory = "language_model.model.layers.0.q", "model.language_model.layers.0.q"
    config = {"architectures": ["Gemma3ForConditionalGeneration"]}
    base = write_checkpoint(tmp_path / "base", {f"{disk}.weight": torch.randn(8, 6)}, config=config)
    adapter = write_adapter(tmp_path / "a", {**lora_factors(disk, (8, 6)), **lora_factors(memory, (8, 6))})
    before = snapshot(tmp_path)
    with pytest.raises(MismatchError, match=r"both change language_model\.model\.layers\.0\.q\.weight"):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_a_changed_prefix_is_said(tmp_path: Path) -> None:
    config = {"model_type": "bert"}
    base = write_checkpoint(tmp_path / "base", {"layer.0.q.weight": torch.randn(8, 6)}, config=config)
    adapter = write_adapter(tmp_path / "a", lora_factors("bert.layer.0.q", (8, 6)))
    report = adaptertool.merge(base, [adapter], tmp_path / "out")
    assert report.notes == (f"{adapter}: names fit with the prefix bert stripped",)


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
                    find(names(name, architecture=architecture), name)
    assert checked > 2


def test_architectures_that_the_table_cannot_hold_are_refused() -> None:
    refused = [name for name, number in TABLE["architectures"].items() if number < 0]
    assert refused
    with pytest.raises(UnsupportedError, match=f"{refused[0]} are not supported yet"):
        names("a.weight", architecture=refused[0])


def test_the_pages_say_how_many() -> None:
    held = sum(number >= 0 for number in TABLE["architectures"].values())
    assert f"renamings and fusions of {held} architectures" in (ROOT / "docs/handled.md").read_text()
    assert f"{held} architectures of transformers" in (ROOT / "README.md").read_text()
