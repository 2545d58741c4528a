"""What is written for mlx-lm, and what it cannot hold. tests/oracle/test_mlx.py loads it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, lora_factors, same_bits, write_adapter, write_checkpoint
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import UnsupportedError
from adaptertool.formats.mlx.targets import targets_of

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
EXPERT = "model.layers.0.mlp.experts.{}.up_proj"


def written(folder: Path, tensors: dict[str, torch.Tensor], base: Path | None = None, **fields: Any) -> Path:
    path = write_adapter(folder / "peft", tensors, **fields)
    adaptertool.convert(path, folder / "mlx", to="mlx", base=base)
    return folder / "mlx"


def test_factors_are_turned_and_keep_their_bits(tmp_path: Path) -> None:
    factors = lora_factors(Q, (8, 6), dtype=torch.bfloat16)
    path = written(tmp_path, factors, base_model_name_or_path="org/model")
    found = load_file(path / "adapters.safetensors")
    assert list(found) == [f"{Q}.lora_a", f"{Q}.lora_b"]
    for turned, factor in zip(found.values(), factors.values(), strict=True):
        assert turned.dtype == torch.bfloat16
        assert torch.equal(turned.T, factor)
    assert json.loads((path / "adapter_config.json").read_text()) == {
        "fine_tune_type": "lora",
        "model": "org/model",
        "num_layers": -1,
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": [Q]},
    }


def test_other_ranks_and_scales_are_said_by_the_factors(tmp_path: Path) -> None:
    factors = lora_factors(Q, (8, 6)) | lora_factors(UP, (8, 6), 2, torch.bfloat16)
    base = write_checkpoint(tmp_path / "base", {f"{name}.weight": torch.zeros(8, 6).double() for name in (Q, UP)})
    fields = {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 1}}
    path = written(tmp_path, factors, **fields)
    found = load_file(path / "adapters.safetensors")
    assert found[f"{UP}.lora_a"].shape == (6, 4) and not found[f"{UP}.lora_a"][:, 2:].any()
    assert found[f"{UP}.lora_b"].dtype == torch.bfloat16  # 0.5/2 is a power of two
    for source, out in ((tmp_path / "peft", "one"), (path, "other")):
        adaptertool.merge(base, [source], tmp_path / out)
    one, other = load(tmp_path / "one"), load(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_scale_of_0_for_all(tmp_path: Path) -> None:
    path = written(tmp_path, lora_factors(Q, (8, 6)), lora_alpha=0)
    assert not load_file(path / "adapters.safetensors")[f"{Q}.lora_b"].any()


CONV, MAGNITUDE = "model.conv", f"{Q}.lora_magnitude_vector"
REFUSED = {
    "saved": ({**lora_factors(Q, (8, 6)), "score.weight": torch.ones(2, 6)}, {}, "kind full"),
    "bias": ({**lora_factors(Q, (8, 6)), f"{Q}.lora_B.bias": torch.ones(8)}, {"lora_bias": True}, "kind offset"),
    "another kind": ({f"{Q}.hada_{n}": torch.ones(s) for n, s in (("w1_a", (8, 4)), ("w1_b", (4, 6)), ("w2_a", (8, 4)),
                     ("w2_b", (4, 6)))}, {"peft_type": "LOHA", "alpha": 8, "lora_alpha": None}, "kind loha"),
    "convolution": (
        {f"{CONV}.lora_A.weight": torch.ones(4, 3, 2, 2), f"{CONV}.lora_B.weight": torch.ones(8, 4, 1, 1)},
        {}, "convolution",
    ),
    "dora of an embedding": (
        {"x.embed_tokens.lora_embedding_A": torch.ones(4, 9), "x.embed_tokens.lora_embedding_B": torch.ones(6, 4),
         "x.embed_tokens.lora_magnitude_vector": torch.ones(6)}, {"use_dora": True}, "DoRA of embeddings",
    ),
    "experts without a base": (lora_factors(EXPERT.format(0), (8, 6)), {}, "give it (--base)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_hold(tmp_path: Path, case: str) -> None:
    tensors, fields, part = REFUSED[case]
    with pytest.raises(UnsupportedError) as caught:
        written(tmp_path, tensors, **fields)
    assert part in str(caught.value)
    assert not (tmp_path / "mlx").exists()


@pytest.mark.parametrize(("held", "model_type", "stack"), [(3, "qwen3_moe", "switch_mlp"), (3, "dots1", "experts")])
def test_experts_make_a_stack(tmp_path: Path, held: int, model_type: str, stack: str) -> None:
    config = {"model_type": model_type, "num_experts": 3, "tie_word_embeddings": False}
    weights = {f"{EXPERT.format(n)}.weight": torch.zeros(8, 6) for n in range(3)}
    base = write_checkpoint(tmp_path / "base", weights, config=config)
    factors = {key: factor for n in range(held) for key, factor in lora_factors(EXPERT.format(n), (8, 6)).items()}
    found = load_file(written(tmp_path, factors, base) / "adapters.safetensors")
    name = f"model.layers.0.mlp.{stack}.up_proj"
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == {
        f"{name}.lora_a": (3, 4, 6),
        f"{name}.lora_b": (3, 8, 4),
    }
    assert torch.equal(found[f"{name}.lora_b"][1], factors[f"{EXPERT.format(1)}.lora_B.weight"])
    with pytest.raises(UnsupportedError, match="2 of 3 experts"):
        written(tmp_path / "some", dict(list(factors.items())[:4]), base)


def test_numbers_that_mlx_changes_are_refused(tmp_path: Path) -> None:
    config = {"model_type": "falcon_h1", "tie_word_embeddings": False}
    base = write_checkpoint(tmp_path / "base", {f"{Q}.weight": torch.zeros(8, 6)}, config=config)
    with pytest.raises(UnsupportedError, match="converts the numbers"):
        written(tmp_path, lora_factors(Q, (8, 6)), base)


@pytest.mark.parametrize(
    ("names", "depth", "expected"),
    [
        (["a.1.q", "a.2.q"], 3, (2, ["q"])),
        (["a.0.q", "a.1.q"], 3, (-1, ["a.0.q", "a.1.q"])),
        (["a.1.q", "a.2.k"], 3, (-1, ["a.1.q", "a.2.k"])),
        (["a.1.q", "a.2.q", "head"], 3, (2, ["head", "q"])),
        (["a.0.q"], None, (-1, ["a.0.q"])),
        (["head"], 3, (-1, ["head"])),
        ([], 3, (-1, [])),
    ],
)
def test_targets(names: list[str], depth: int | None, expected: tuple[int, list[str]]) -> None:
    assert targets_of(names, None if depth is None else {"num_hidden_layers": depth}) == expected


def test_tied_ends_are_changed_as_they_were(tmp_path: Path) -> None:
    """To MLX a tied head is its embedding, changes included; to PEFT that is so where its config says it."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    weights = {f"{Q}.weight": torch.randn(8, 6), "model.embed_tokens.weight": torch.randn(9, 6)}
    base = write_checkpoint(tmp_path / "base", weights, config=config)
    embedding = {"model.embed_tokens.lora_embedding_A": torch.randn(4, 9)}
    embedding["model.embed_tokens.lora_embedding_B"] = torch.randn(6, 4)
    for number, factors in enumerate((embedding, lora_factors("lm_head", (9, 6)))):
        with pytest.raises(
            UnsupportedError, match=r"base ties lm_head\.weight, model\.embed_tokens\.weight, and written"
        ):
            written(tmp_path / str(number), factors, base)
    path = write_adapter(tmp_path / "peft", embedding, r=4, ensure_weight_tying=True)
    adaptertool.convert(path, tmp_path / "mlx", to="mlx", base=base)
    adaptertool.convert(tmp_path / "mlx", tmp_path / "back", to="peft", base=base)
    for name in ("peft", "mlx", "back"):
        adaptertool.merge(base, [tmp_path / name], tmp_path / f"{name}-out")
    expected = load(tmp_path / "peft-out")
    assert expected.keys() == weights.keys()
    assert all(
        same_bits(load(tmp_path / f"{name}-out")[key], own) for name in ("mlx", "back") for key, own in expected.items()
    )
    with pytest.raises(UnsupportedError, match="the adapter changes all of them by it"):
        adaptertool.convert(tmp_path / "mlx", tmp_path / "a.gguf", to="gguf", base=base)


def test_changes_of_both_tied_ends_are_compared_by_their_numbers(tmp_path: Path) -> None:
    """Also where they are turned: what lies in no file has no bytes."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    base = write_checkpoint(tmp_path / "base", {"model.embed_tokens.weight": torch.randn(9, 6)}, config=config)
    a, b = torch.randn(9, 2), torch.randn(2, 6)
    (tmp_path / "a").mkdir()
    tensors = {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b}
    tensors |= {"lm_head.lora_a": b.T.contiguous(), "lm_head.lora_b": a.T.contiguous()}
    save_file(tensors, tmp_path / "a" / "adapters.safetensors")
    fields = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 1.0}}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(fields))
    adaptertool.merge(base, [tmp_path / "a"], tmp_path / "out")
    assert load(tmp_path / "out").keys() == load(base).keys()
