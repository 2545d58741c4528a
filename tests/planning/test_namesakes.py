"""`sum` of adapters of one model, with the names of two versions of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import load, lora_factors, same_bits, write_adapter, write_checkpoint

import adaptertool
from adaptertool.errors import MismatchError
from adaptertool.tasks.sum import sum_adapters

TOWER = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
FORMS = {
    "LlavaForConditionalGeneration": ("language_model.model.layers.0.self_attn.q_proj",
                                      "model.language_model.layers.0.self_attn.q_proj"),
    "Qwen2VLForConditionalGeneration": ("model.layers.0.self_attn.q_proj",
                                        "model.language_model.layers.0.self_attn.q_proj"),
    "ViTForImageClassification": ("vit.encoder.layer.0.attention.attention.query", "vit.layers.0.attention.q_proj"),
    "GPTNeoXForCausalLM": ("embed_out", "lm_head"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_names_of_two_versions_are_joined(tmp_path: Path, name: str) -> None:
    """Where the base or the architecture is known; the sum is then that of one layer, else it is refused."""
    old, new = FORMS[name]
    tensors = {f"{old}.weight": torch.randn(6, 5), f"{TOWER}.weight": torch.randn(6, 5)}
    config = {"architectures": [name], "tie_word_embeddings": False}
    base = write_checkpoint(tmp_path / "base", tensors, config=config)
    mapping = {"auto_mapping": {"base_model_class": name, "parent_library": "transformers"}}
    for said, folder in ((mapping, "said"), ({}, "unsaid")):
        first = write_adapter(tmp_path / folder / "0", lora_factors(new, (6, 5)) | lora_factors(TOWER, (6, 5)), **said)
        second = write_adapter(tmp_path / folder / "1", lora_factors(old, (6, 5)))
        if not said:
            with pytest.raises(MismatchError, match="seem to be the same layer"):
                sum_adapters([first, second], tmp_path / "out")
        report = sum_adapters(
            [first, second], tmp_path / folder / "sum", base=None if said else base, weights=["1", "0.5"]
        )
        assert {layer.layer: layer.ranks for layer in report.layers} == {new: (4, 4), TOWER: (4,)}
        (note,) = (note for note in report.notes if "other names" in note)
        assert f"{old} is {new}" in note
        adaptertool.merge(base, [first, second], tmp_path / folder / "both", weights=[1, 0.5])
        adaptertool.merge(base, [tmp_path / folder / "sum"], tmp_path / folder / "merged")
        differ = adaptertool.diff(tmp_path / folder / "both", tmp_path / folder / "merged")
        assert all((tensor.rel_error or 0) < 1e-6 for tensor in differ.tensors)
        assert not adaptertool.diff(base, tmp_path / folder / "merged").equal
    with pytest.raises(MismatchError, match="are one module of the model"):
        twice = write_adapter(tmp_path / "twice", lora_factors(new, (6, 5)) | lora_factors(old, (6, 5)), **mapping)
        sum_adapters([twice, twice], tmp_path / "out")


def test_saved_tensors_under_two_names_are_joined(tmp_path: Path) -> None:
    mapping = {"auto_mapping": {"base_model_class": "LlavaForConditionalGeneration"}}
    norm, layer = torch.randn(5), lora_factors("lm_head", (6, 5))
    one, two = (
        write_adapter(tmp_path / place, {**layer, f"{place}.norm.weight": norm}, **said)
        for place, said in (("model.language_model", mapping), ("language_model.model", {}))
    )
    report = sum_adapters([one, two], tmp_path / "out", weights=["1", "0.5"], dry_run=True)
    assert report.saved == ("base_model.model.model.language_model.norm.weight",)


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("model.layers.0.q_proj", "model.language_model.layers.0.q_proj", False),
        ("bert.encoder.layer.0.query", "roberta.encoder.layer.0.query", False),
        ("lm_head", "language_model.lm_head", False),
        ("model.embed_tokens", "model.language_model.embed_tokens", False),
        ("model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.gate", False),
        ("model.language_model.layers.0.q_proj", "model.vision_tower.encoder.layers.0.q_proj", True),
        ("encoder.block.0.layer.0.q", "decoder.block.0.layer.0.q", True),
        ("model.layers.0.q_proj", "model.layers.1.q_proj", True),
        ("model.layers.0.q_proj", "visual.blocks.0.qkv", True),
    ],
)
def test_which_names_seem_to_be_one(tmp_path: Path, one: str, other: str, apart: bool) -> None:
    first, second, both = (
        write_adapter(tmp_path / str(n), {k: t for name in own for k, t in lora_factors(name, (6, 5)).items()})
        for n, own in enumerate(([one], [other], [one, other]))
    )
    if apart:
        assert len(sum_adapters([first, second], tmp_path / "out").layers) == 2
    else:
        with pytest.raises(MismatchError, match="seem to be the same layer"):
            sum_adapters([first, second], tmp_path / "out")
    assert len(sum_adapters([first, both], tmp_path / "both").layers) == 2  # in one adapter they are two
    assert len(sum_adapters([first, second], tmp_path / "one", renames=[f"^{other}\\.=>{one}."]).layers) == 1


def test_dora_under_names_of_two_versions(tmp_path: Path) -> None:
    old, new = FORMS["LlavaForConditionalGeneration"]
    config = {"architectures": ["LlavaForConditionalGeneration"], "tie_word_embeddings": False}
    base = write_checkpoint(tmp_path / "base", {f"{old}.weight": torch.randn(6, 5)}, config=config)
    paths = []
    for name in (new, old):
        torch.manual_seed(3)
        tensors = lora_factors(name, (6, 5)) | {f"{name}.lora_magnitude_vector": torch.rand(6) + 1}
        paths.append(write_adapter(tmp_path / name, tensors, use_dora=True))
    sum_adapters(paths, tmp_path / "mixed", base=base, rank=5)
    sum_adapters([paths[0], paths[0]], tmp_path / "same", base=base, rank=5)
    mixed, same = load(tmp_path / "mixed"), load(tmp_path / "same")
    assert mixed.keys() == same.keys() and all(same_bits(mixed[key], same[key]) for key in same)
