"""Full checkpoints under other names than the base: every command finds which tensor is which, in the same way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from conftest import FIXTURES, load, lora_factors, main_here, same_bits, snapshot, write_adapter, write_checkpoint
from expert_models import train
from models import MODELS, TEXT, VISION, build
from peft import PeftModel

import adaptertool
from adaptertool.architectures.conversion import into_memory, rules_for
from adaptertool.errors import MismatchError, UsageError

Tensors = dict[str, torch.Tensor]


class Case(NamedTuple):
    """Names of a base, and what another checkpoint calls the same tensors."""

    config: dict[str, Any]
    names: list[str]
    other: Callable[[str], str]
    said: str


def architecture(name: str, **more: Any) -> dict[str, Any]:
    return {"architectures": [name], "tie_word_embeddings": False, **more}


QWEN = [
    "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight",
    "visual.blocks.0.attn.qkv.weight", "lm_head.weight",
]  # fmt: skip
LLAVA = [
    "language_model.model.embed_tokens.weight", "language_model.model.layers.0.self_attn.q_proj.weight",
    "language_model.lm_head.weight", "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
    "multi_modal_projector.linear_1.weight",
]  # fmt: skip
GPT2 = ["wte.weight", "h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias", "ln_f.weight"]
BERT = ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.0.output.LayerNorm.weight", "bert.encoder.layer.0.output.LayerNorm.bias",
        "classifier.weight"]  # fmt: skip
LLAMA = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"]


def in_memory(name: str) -> Callable[[str], str]:
    return lambda disk: into_memory(rules_for(name), disk)[0][0]


CASES = {
    **{f"{name} of transformers 4 and 5": Case(architecture(name), QWEN, in_memory(name), "is model.language_model")
       for name in ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")},
    **{f"{name} of transformers 4 and 5": Case(architecture(name), LLAVA, in_memory(name), "is lm_head.weight there")
       for name in ("LlavaForConditionalGeneration", "PaliGemmaForConditionalGeneration",
                    "Gemma3ForConditionalGeneration", "Mistral3ForConditionalGeneration")},
    "GPT-2 as on the hub": Case(architecture("GPT2LMHeadModel", model_type="gpt2"), GPT2,
                                lambda name: f"transformer.{name}", "the prefix transformer stripped"),
    "BERT without its prefix": Case(architecture("BertForSequenceClassification", model_type="bert"), BERT,
                                    lambda name: name.removeprefix("bert."), "the prefix bert added"),
    "gamma and beta": Case(architecture("BertForSequenceClassification", model_type="bert"), BERT,
                           lambda name: re.sub("Norm.weight", "Norm.gamma", name).replace("Norm.bias", "Norm.beta"),
                           "LayerNorm.beta there"),
    "weight_norm": Case(architecture("Wav2Vec2ForCTC"), ["a.conv.weight_g", "a.conv.weight_v", "a.proj.weight"],
                        lambda name: name.replace("weight_g", "parametrizations.weight.original0")
                        .replace("weight_v", "parametrizations.weight.original1"), "original0 there"),
    "a tower by itself": Case(architecture("LlamaForCausalLM", model_type="llama"), LLAMA,
                              lambda name: f"language_model.{name}", "prefix language_model stripped"),
    "a tower inside": Case(architecture("LlamaForCausalLM", model_type="llama"), LLAMA,
                           lambda name: name.replace("model.", "model.language_model."), "language_model stripped"),
}  # fmt: skip


class Ground(NamedTuple):
    base: Path
    same: Path  # tuned, with the names of the base
    other: Path  # the same under other names
    out: Path


def tensors_of(names: list[str]) -> Tensors:
    return {name: torch.randn(8) if "orm" in name or name.endswith("bias") else torch.randn(8, 6) for name in names}


def ground(folder: Path, case: Case) -> Ground:
    base = tensors_of(case.names)
    tuned = {name: tensor + torch.randn(tensor.shape) / 8 for name, tensor in base.items()}
    renamed = {case.other(name): tensor for name, tensor in tuned.items()}
    assert len(renamed) == len(tuned) and renamed.keys() != tuned.keys()
    return Ground(
        write_checkpoint(folder / "base", base, config=case.config),
        write_checkpoint(folder / "same", tuned, config=case.config),
        write_checkpoint(folder / "other", renamed, config=case.config, shards=2),
        folder / "out",
    )


def alike(one: Path, other: Path) -> bool:
    ours, theirs = load(one), load(other)
    return ours.keys() == theirs.keys() and all(same_bits(ours[name], theirs[name]) for name in ours)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_every_command_finds_the_names(tmp_path: Path, name: str) -> None:
    """The outputs are those of a checkpoint with the names of the base; one note says what was found."""
    case = CASES[name]
    place = ground(tmp_path, case)

    def both(make: Callable[[Path, Path], Any]) -> None:
        expected, report = make(place.same, tmp_path / "expected"), make(place.other, tmp_path / "found")
        assert alike(tmp_path / "expected", tmp_path / "found")
        (note,) = set(report.notes) - set(expected.notes)
        assert case.said in note and str(place.other) in note
        for folder in ("expected", "found"):
            for file in (tmp_path / folder).iterdir():
                file.unlink()
            (tmp_path / folder).rmdir()

    both(lambda tuned, out: adaptertool.wise(place.base, tuned, out, 0.5))
    both(lambda tuned, out: adaptertool.merge(place.base, [tuned], out, method="linear", weights=[0.5]))
    weights = [write_checkpoint(tmp_path / f, {n: t.abs() for n, t in load(place.same).items()}) for f in ("f0", "f1")]
    both(lambda tuned, out: adaptertool.wise(place.base, tuned, out, 0.5, fisher=(weights[0], weights[1])))
    if name != "weight_norm":
        both(lambda tuned, out: adaptertool.extract(place.base, tuned, out, rank=2, leave_out=["wte|embed"]))
    assert adaptertool.verify(place.other, place.base, [place.same], alpha=1).summary.exact == len(case.names)
    assert adaptertool.verify(place.other, place.base, [place.other], alpha=1).ok
    wrong = adaptertool.verify(place.other, place.base, [place.same], alpha=0.5)
    assert not wrong.ok and {tensor.status for tensor in wrong.tensors} == {"wrong"}
    differ = adaptertool.diff(place.base, place.other)
    assert {tensor.name: tensor.status for tensor in differ.tensors} == dict.fromkeys(case.names, "changed")
    assert adaptertool.diff(place.same, place.other).equal and adaptertool.diff(place.other, place.same).equal


def test_fisher_weights_under_other_names(tmp_path: Path) -> None:
    case = CASES["GPT-2 as on the hub"]
    place = ground(tmp_path, case)
    same = write_checkpoint(tmp_path / "f0", {n: t.abs() for n, t in load(place.same).items()}, config=case.config)
    other = write_checkpoint(tmp_path / "f1", {n: t.abs() for n, t in load(place.other).items()}, config=case.config)
    adaptertool.wise(place.base, place.same, tmp_path / "a", 0.5, fisher=(same, same))
    report = adaptertool.wise(place.base, place.same, tmp_path / "b", 0.5, fisher=(same, other))
    assert alike(tmp_path / "a", tmp_path / "b") and any(str(other) in note for note in report.notes)


# What one side leaves out


def tied(folder: Path, *, config: dict[str, Any], base: Tensors, tuned: Tensors) -> tuple[Path, Path]:
    return write_checkpoint(folder / "b", base, config=config), write_checkpoint(folder / "t", tuned, config=config)


TIES = {
    "LlamaForCausalLM": ("lm_head.weight", "model.embed_tokens.weight"),
    "GPT2LMHeadModel": ("lm_head.weight", "transformer.wte.weight"),
    "BertForMaskedLM": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "T5ForConditionalGeneration": ("encoder.embed_tokens.weight", "shared.weight"),
}


@pytest.mark.parametrize("name", TIES)
def test_a_tied_end_that_one_side_leaves_out(tmp_path: Path, name: str) -> None:
    end, source = TIES[name]
    config = {"architectures": [name], "tie_word_embeddings": True}
    once = {source: torch.randn(8, 6), "a.q.weight": torch.randn(6, 6)}
    tuned = {key: tensor + torch.randn(tensor.shape) / 8 for key, tensor in once.items()}
    twice = tuned | {end: tuned[source].clone()}
    base, more = tied(tmp_path, config=config, base=once, tuned=twice)
    plain = write_checkpoint(tmp_path / "plain", tuned, config=config)
    report = adaptertool.wise(base, more, tmp_path / "out", 0.5)
    adaptertool.wise(base, plain, tmp_path / "expected", 0.5)
    assert alike(tmp_path / "out", tmp_path / "expected")
    assert any("since it is tied" in note and end in note for note in report.notes)
    assert adaptertool.diff(plain, more).equal and adaptertool.diff(more, plain).equal
    assert adaptertool.verify(more, base, [plain], alpha=1).ok and adaptertool.verify(plain, more).ok
    # The other way: the base has both, and the output too.
    adaptertool.wise(more, base, tmp_path / "back", 1)
    assert all(load(tmp_path / "back")[key].equal(once[source]) for key in (end, source))
    only = write_checkpoint(tmp_path / "only", tuned | {source: once[source], end: once[source].clone()}, config=config)
    extracted = adaptertool.extract(base, only, tmp_path / "x", rank=2)
    assert [one.tensor for one in extracted.tensors] == ["a.q.weight"]


def test_an_end_that_is_not_the_same_is_a_difference(tmp_path: Path) -> None:
    """Stored twice, and not equal: no tie of the base's can stand for it."""
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    once = {"model.embed_tokens.weight": torch.randn(8, 6), "model.layers.0.mlp.up_proj.weight": torch.randn(6, 6)}
    base, other = tied(tmp_path, config=config, base=once, tuned=once | {"lm_head.weight": torch.randn(8, 6)})
    before = snapshot(tmp_path)
    for call in (
        lambda: adaptertool.wise(base, other, tmp_path / "out", 0.5),
        lambda: adaptertool.extract(base, other, tmp_path / "out", rank=2),
        lambda: adaptertool.merge(base, [other], tmp_path / "out", method="linear"),
    ):
        with pytest.raises(MismatchError, match=r"lm_head\.weight is not the same as model\.embed_tokens\.weight"):
            call()
    assert snapshot(tmp_path) == before
    (found,) = adaptertool.diff(base, other).tensors
    assert (found.name, found.status) == ("lm_head.weight", "changed")
    assert not adaptertool.verify(other, base).ok


def test_an_end_that_nothing_ties_is_missing(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    once = {"model.embed_tokens.weight": torch.randn(8, 6)}
    twice = once | {"lm_head.weight": once["model.embed_tokens.weight"].clone()}
    base, other = tied(tmp_path, config=config, base=twice, tuned=once)
    for one, two in ((base, other), (other, base)):
        with pytest.raises(MismatchError, match=r"1 tensors are in .*: lm_head\.weight"):
            adaptertool.wise(one, two, tmp_path / "out", 0.5)
        assert [tensor.status for tensor in adaptertool.diff(one, two).tensors] in (["missing"], ["extra"])
    unsaid = write_checkpoint(tmp_path / "unsaid", once, config={"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(MismatchError, match="1 tensors are in"):
        adaptertool.wise(base, unsaid, tmp_path / "out", 0.5)
    assert not adaptertool.verify(unsaid, base).ok


BUFFERS = {
    "bert.embeddings.position_ids": torch.arange(6)[None],
    "h.0.attn.bias": torch.ones(1, 1, 4, 4),
    "h.0.attn.masked_bias": torch.tensor(-1e4),
    "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(3),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_that_models_compute_themselves(tmp_path: Path, name: str) -> None:
    plain = {"h.0.q.weight": torch.randn(6, 6)}
    base, other = tied(
        tmp_path, config={}, base=plain | {name: BUFFERS[name]}, tuned={"h.0.q.weight": torch.randn(6, 6)}
    )
    for number, (one, two) in enumerate(((base, other), (other, base))):
        report = adaptertool.wise(one, two, tmp_path / f"out{number}", 1)
        assert load(tmp_path / f"out{number}").keys() == load(one).keys()
        assert load(tmp_path / f"out{number}")["h.0.q.weight"].equal(load(two)["h.0.q.weight"])
        assert any("models compute it themselves" in note and name in note for note in report.notes)
        assert [tensor.name for tensor in adaptertool.diff(one, two).tensors] == ["h.0.q.weight"]
        adaptertool.extract(one, two, tmp_path / f"x{number}", rank=2)
        assert adaptertool.verify(two, one, [two], alpha=1).ok


# What is not clear


def test_two_tensors_for_one_name_are_refused(tmp_path: Path) -> None:
    case = CASES["gamma and beta"]
    place = ground(tmp_path, case)
    tensors = load(place.base)
    tensors["bert.encoder.layer.0.output.LayerNorm.gamma"] = torch.randn(8)
    tensors["encoder.layer.0.output.LayerNorm.weight"] = torch.randn(8)
    del tensors["bert.encoder.layer.0.output.LayerNorm.weight"]
    both = write_checkpoint(tmp_path / "both", tensors, config=case.config)
    with pytest.raises(MismatchError, match=r"1 tensors are in .*both but not in .*base"):
        adaptertool.wise(place.base, both, tmp_path / "out", 0.5)
    name = "LlavaForConditionalGeneration"
    one = write_checkpoint(tmp_path / "one", {"lm_head.weight": torch.ones(2)}, config=architecture(name))
    two = {"language_model.lm_head.weight": torch.ones(2), "language_model.lm_head.gamma": torch.ones(2)}
    other = write_checkpoint(tmp_path / "two", two, config=architecture(name))
    with pytest.raises(MismatchError, match=r"can be lm_head\.weight of the base; say which with --rename"):
        adaptertool.diff(one, other)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("vision_model.encoder.layers.0.q.weight", "encoder.layers.0.q.weight"),
        ("text_model.encoder.layers.0.q.weight", "vision_model.encoder.layers.0.q.weight"),
        ("decoder.layers.0.q.weight", "layers.0.q.weight"),
        ("model.vision_tower.layers.0.q.weight", "model.layers.0.q.weight"),
        ("vision_tower.model.layers.0.q.weight", "model.layers.0.q.weight"),
    ],
)
def test_a_part_of_a_model_is_no_prefix(tmp_path: Path, ours: str, theirs: str) -> None:
    """Another tower or half has the same shapes: a wrong one would be mixed in silence."""
    for number, (one, two) in enumerate(((ours, theirs), (theirs, ours))):
        paths = [write_checkpoint(tmp_path / f"{number}{name}", {name: torch.randn(6, 6)}) for name in (one, two)]
        with pytest.raises(MismatchError, match="1 tensors are in"):
            adaptertool.wise(*paths, tmp_path / "out", 0.5)


def test_what_is_fused_on_one_side_is_refused_by_name(tmp_path: Path) -> None:
    config = architecture("MixtralForCausalLM", model_type="mixtral")
    apart = {
        f"model.layers.0.block_sparse_moe.experts.{e}.{w}.weight": torch.randn(8, 6)
        for e in (0, 1)
        for w in ("w1", "w3")
    }
    fused = {"model.layers.0.mlp.experts.gate_up_proj": torch.randn(2, 16, 6)}
    base, other = tied(tmp_path, config=config, base=fused, tuned=apart)
    with pytest.raises(MismatchError, match=r"gate_up_proj; there it is 4 tensors such as .*w1\.weight\. Tensors are"):
        adaptertool.wise(base, other, tmp_path / "out", 0.5)
    with pytest.raises(MismatchError, match=r"there it is a part of .*gate_up_proj"):
        adaptertool.wise(other, base, tmp_path / "out", 0.5)
    # Stored apart on both sides, under the names of both versions: each is found.
    newer = {name.replace("block_sparse_moe", "mlp"): tensor for name, tensor in apart.items()}
    assert adaptertool.diff(other, write_checkpoint(tmp_path / "newer", newer, config=config)).equal


# --rename


def test_renamings_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["blocks.0.q.weight", "blocks.1.q.weight", "head.weight"]
    case = Case({}, names, lambda name: name.replace("blocks.", "net.layers."), "")
    place, rename = ground(tmp_path, case), r"^net\.layers\.=>blocks."
    with pytest.raises(MismatchError, match="2 tensors are in"):
        adaptertool.wise(place.base, place.other, tmp_path / "out", 0.5)
    adaptertool.wise(place.base, place.same, tmp_path / "expected", 0.5)
    adaptertool.wise(place.base, place.other, tmp_path / "out", 0.5, renames=[rename])
    assert alike(tmp_path / "out", tmp_path / "expected")
    recipe = json.loads((tmp_path / "out" / "adaptertool.manifest.json").read_text())["recipe"]
    assert recipe["renames"] == [rename]
    assert adaptertool.diff(place.same, place.other, renames=[rename]).equal
    assert adaptertool.verify(place.other, place.base, [place.other], alpha=1, renames=[rename]).ok
    adaptertool.extract(place.base, place.other, tmp_path / "x", rank=2, renames=[rename])
    adaptertool.merge(place.base, [place.other], tmp_path / "m", method="linear", renames=[rename])
    base, other = str(place.base), str(place.other)
    assert main_here(["diff", base, other, "--rename", rename, "-q"], monkeypatch) == 1
    assert (
        main_here(["extract", base, other, "--rank", "1", "--rename", rename, "-o", f"{base}-x", "-q"], monkeypatch)
        == 0
    )
    for call in (
        lambda texts: adaptertool.wise(place.base, place.same, tmp_path / "o", 0.5, renames=texts),
        lambda texts: adaptertool.extract(place.base, place.same, tmp_path / "o", rank=1, renames=texts),
        lambda texts: adaptertool.diff(place.base, place.same, renames=texts),
        lambda texts: adaptertool.verify(place.same, place.base, [place.same], alpha=1, renames=texts),
    ):
        with pytest.raises(UsageError, match="changes no name"):
            call(["blocks=>x"])  # the base has these names, so they stay
    with pytest.raises(MismatchError, match=r"would both be blocks\.9"):
        adaptertool.wise(place.base, place.other, tmp_path / "o", 0.5, renames=[r"net\.layers\.\d=>blocks.9"])


def test_a_renaming_of_the_adapter_leaves_the_merge_as_it_is(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"inner.q.weight": torch.randn(8, 6)})
    adapter = write_adapter(tmp_path / "a", lora_factors("q", (8, 6)))
    adaptertool.merge(base, [adapter], tmp_path / "out", renames=["^=>inner."])
    assert adaptertool.verify(tmp_path / "out", base, [adapter], renames=["^=>inner."]).ok


def test_names_that_are_equal_need_no_note() -> None:
    report = adaptertool.diff(FIXTURES / "base", FIXTURES / "tuned")
    assert not [note for note in report.notes if "names" in note]


# Merges by PEFT onto bases of another age

VLM = {"LlavaForConditionalGeneration": MODELS["LlavaForConditionalGeneration"][0],
       "Gemma3ForConditionalGeneration": MODELS["Gemma3ForConditionalGeneration"][0],
       "PaliGemmaForConditionalGeneration": {
           "text_config": TEXT | {"model_type": "gemma"}, "projection_dim": 32,
           "vision_config": VISION | {"model_type": "siglip_vision_model"}},
       "Qwen2_5_VLForConditionalGeneration": {
           "text_config": TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
           "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 4, "patch_size": 8, "intermediate_size": 48,
                             "out_hidden_size": 32, "fullatt_block_indexes": [0], "window_size": 16}}}  # fmt: skip


def resaved(place: Path, out: Path, name: Callable[[str], str], more: Tensors | None = None) -> Path:
    tensors = {name(key): tensor for key, tensor in load(place).items()}
    return write_checkpoint(out, tensors | (more or {}), config=json.loads((place / "config.json").read_text()))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertForMaskedLM", *VLM])
def test_merges_of_peft_onto_a_base_of_other_names(tmp_path: Path, name: str) -> None:
    fields: dict[str, Any] = VLM.get(name) or MODELS[name][0]
    model = build(name, fields).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "plain")
    adapter = train(model, tmp_path / "adapter", target_modules=["query", "c_attn", "q_proj", "gate_proj"])
    loaded = getattr(transformers, name).from_pretrained(tmp_path / "plain", dtype=torch.bfloat16)
    PeftModel.from_pretrained(loaded, adapter).merge_and_unload().save_pretrained(tmp_path / "merged")
    older = {
        "GPT2LMHeadModel": lambda key: key.removeprefix("transformer."),
        "BertForMaskedLM": lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma"),
    }.get(name, in_memory(name))
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 32, 32) for layer in range(2) if "GPT2" in name}
    base = resaved(tmp_path / "plain", tmp_path / "base", older, masks)
    assert adaptertool.verify(tmp_path / "merged", base, [adapter]).ok
    assert adaptertool.verify(resaved(tmp_path / "merged", tmp_path / "m", older), tmp_path / "plain", [adapter]).ok
    assert not adaptertool.verify(tmp_path / "merged", base, [adapter], weights=[0.9]).ok
    assert adaptertool.drift(base, [adapter], merged=tmp_path / "merged").ok
    adaptertool.merge(base, [adapter], tmp_path / "ours")
    adaptertool.merge(tmp_path / "plain", [adapter], tmp_path / "theirs")
    assert adaptertool.diff(tmp_path / "ours", tmp_path / "theirs").equal
