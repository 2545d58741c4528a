"""PEFT's registry, walked: every tuner on every class of layer, and every field of every config. What a later version
adds, or begins to merge, fails here until it is handled, or refused by name."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_checkpoint
from layers import check, peft_merge
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_doubles import in_doubles
from peft_doubles import quiet as quiet
from torch import nn
from transformers.pytorch_utils import Conv1D

import adaptertool
from adaptertool.errors import UnsupportedError
from adaptertool.formats.peft.fields import require_known, spelling_of
from adaptertool.formats.peft.refused import REFUSED

CONFIGS = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
MERGED = sorted(CONFIGS.keys() - REFUSED.keys())
GPT2 = "h.0.attn.c_attn"  # whose weight is known to be stored transposed, also where no factor tells
# What is needed to fit the layers below
NEEDED: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 3, "target_r": 2, "total_step": 9},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FROD": {"sparse_rate": 0.05, "progressbar": False},
    "FOURIERFT": {"n_frequency": 11},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 4},
    "OFT": {"r": 0, "oft_block_size": 4},
    "PSOFT": {"r": 3},
    "PVERA": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [1, 3]},
    "UNILORA": {"theta_d_length": 50, "save_indices": True},
    "VBLORA": {"r": 2, "num_vectors": 60, "vector_length": 2},
    "WAVEFT": {"n_frequency": 30},
}
# (kind, layer) that PEFT merges, and we do not -> why
LEFT = {
    ("OFT", "conv2"): "PEFT's forward pass is not that of the weight which it merges",
}
# Kinds that PEFT merges, and we do not -> why: their files do not hold what they depend on (test_peft_decomposed.py)
REMAIN = {
    "PSOFT": "turns singular vectors of the base weight, whose signs its file does not tell",
    "ADAMSS": "does not save which rows its factors are for",
}
# Where what PEFT makes of a weight rounds in ways that its library of linear algebra chooses: by how many halves of a
# last bit of float32 the merges may differ. FRoD divides by columns that are nothing but rounding, where a layer of few
# rows is the only one of its sort
NOISY = {"FROD": 4}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn = Conv1D(16, 24)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()


class Zoo(nn.Module):
    """A layer of each class that torch has a weight for, with sizes that every kind can divide."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([Block()])
        self.linear, self.bare = nn.Linear(16, 24), nn.Linear(16, 24, bias=False)
        self.embedding, self.norm = nn.Embedding(32, 16), nn.LayerNorm(16)
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(8, 12, 3), nn.Conv2d(8, 12, 3), nn.Conv3d(4, 8, 3)
        self.point, self.groups = nn.Conv2d(16, 24, 1), nn.Conv2d(8, 8, 3, groups=2)
        self.back, self.attention = nn.ConvTranspose2d(8, 12, 3), nn.MultiheadAttention(16, 2)
        self.bilinear, self.bag = nn.Bilinear(8, 8, 8), nn.EmbeddingBag(32, 16)


LAYERS = (GPT2, "linear", "bare", "embedding", "norm", "conv1", "conv2", "conv3", "point", "groups", "back",
          "attention", "bilinear", "bag")  # fmt: skip


def make_base(folder: Path) -> tuple[nn.Module, Path]:
    zoo = Zoo()
    with torch.no_grad():
        for parameter in zoo.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 3)
    write_checkpoint(folder, {name: tensor.contiguous() for name, tensor in zoo.state_dict().items()})
    (folder / "config.json").write_text('{"model_type": "gpt2", "tie_word_embeddings": false}')
    return zoo, folder


def train(folder: Path, zoo: nn.Module, kind: str, layers: list[str]) -> Path:
    tuned = get_peft_model(copy.deepcopy(zoo), CONFIGS[kind](target_modules=layers, **NEEDED.get(kind, {})))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged_by_peft(folder: Path, zoo: nn.Module, kind: str) -> list[str]:
    """The layers, each by itself."""
    found = []
    for number, layer in enumerate(LAYERS):
        try:
            peft_merge(zoo, train(folder / f"{number}", zoo, kind, [layer]))
        except Exception:  # whatever it raises where it cannot
            continue
        found.append(layer)
    return found


@pytest.mark.parametrize("kind", MERGED)
def test_every_layer_that_peft_merges(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, base = make_base(tmp_path / "base")
    layers = merged_by_peft(tmp_path, zoo, kind)
    for layer in [layer for layer in layers if (kind, layer) in LEFT]:
        layers.remove(layer)
        with pytest.raises(UnsupportedError, match=LEFT[kind, layer]):
            adaptertool.merge(base, [train(tmp_path / layer, zoo, kind, [layer])], tmp_path / "out")
    assert layers, "PEFT merges none: NEEDED lacks something"
    adapter = train(tmp_path / "a", zoo, kind, layers)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    with in_doubles(monkeypatch):
        check(base, tmp_path / "out", peft_merge(zoo, adapter), None, NOISY.get(kind, 1))


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_peft_merges_of_what_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "ADAMSS":
        pytest.importorskip("sklearn")
    zoo, base = make_base(tmp_path / "base")
    try:
        path = train(tmp_path / "a", zoo, kind, ["bare"])
        PeftModel.from_pretrained(copy.deepcopy(zoo), path).merge_and_unload()  # PSOFT does so in float32 alone
    except Exception:  # whatever it raises where it cannot
        assert kind not in REMAIN
    else:
        assert kind in REMAIN
        with pytest.raises(UnsupportedError, match=f"{kind} {REMAIN[kind]}.*merge it with PEFT"):
            adaptertool.merge(base, [tmp_path / "a"], tmp_path / "out")


@pytest.mark.parametrize("kind", MERGED)
def test_every_field_is_acted_on_or_known_to_be_harmless_or_refused(tmp_path: Path, kind: str) -> None:
    """A field that nobody knows would be refused as soon as it is set, with words that tell nobody what it is."""
    spelled = spelling_of({"peft_type": kind})
    for field in dataclasses.fields(CONFIGS[kind]):
        if field.name in {other.name for other in dataclasses.fields(PeftConfig)}:
            continue
        try:
            require_known(tmp_path, {field.name: "set"}, None if spelled is None else spelled[1])
        except UnsupportedError as error:
            assert "this field is not known" not in str(error), field.name
