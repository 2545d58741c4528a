"""Kinds that multiply a weight by a matrix, on layers that layers.Zoo has not, against PEFT's own merge in float64; and
that against its forward pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from conftest import load, write_checkpoint
from layers import DTYPES, check, peft_merge
from peft import PeftModel, get_peft_model
from peft.tuners.boft import layer as boft
from peft_doubles import Blocks
from torch import nn

import adaptertool


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 20)
        self.square = nn.Conv2d(4, 6, 2)
        self.point = nn.Conv2d(12, 10, 1)


class Case(NamedTuple):
    config: str
    fields: Mapping[str, Any]
    targets: tuple[str, ...]
    edited: int


ALL = ("linear", "square", "point")
CASES = {
    "oft": Case("OFTConfig", {"oft_block_size": 4}, ("linear", "point"), 2),
    "oft-inverse": Case("OFTConfig", {"oft_block_size": 0, "r": 2, "use_cayley_neumann": False}, ("point",), 1),
    "road-1": Case("RoadConfig", {"group_size": 4}, ("linear",), 2),
    "road-2": Case("RoadConfig", {"group_size": 10, "variant": "road_2"}, ("linear",), 2),
    "road-4": Case("RoadConfig", {"group_size": 2, "variant": "road_4"}, ("linear",), 2),
    "hra": Case("HRAConfig", {"r": 4}, ALL, 3),
    "hra-odd": Case("HRAConfig", {"r": 3, "bias": "hra_only"}, ALL, 6),
    "hra-orthogonal": Case("HRAConfig", {"r": 3, "apply_GS": True}, ALL, 3),
    "boft": Case("BOFTConfig", {"boft_block_size": 4}, ALL, 3),
    "boft-biases": Case("BOFTConfig", {"boft_block_size": 0, "boft_block_num": 4, "bias": "boft_only"}, ALL, 6),
    "boft-2": Case("BOFTConfig", {"boft_block_size": 2, "boft_n_butterfly_factor": 2}, ALL, 3),
    "boft-4": Case("BOFTConfig", {"boft_block_size": 2, "boft_n_butterfly_factor": 4}, ("linear", "square"), 2),
}


@pytest.fixture(autouse=True)
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: Blocks)


def make_base(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, Path]:
    zoo = Zoo().to(dtype)
    with torch.no_grad():
        for parameter in zoo.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 3)
    write_checkpoint(folder, {name: tensor.contiguous() for name, tensor in zoo.state_dict().items()})
    (folder / "config.json").write_text('{"tie_word_embeddings": false}')
    return zoo, folder


def train(folder: Path, zoo: nn.Module, case: Case) -> Path:
    config = getattr(peft, case.config)(target_modules=list(case.targets), **case.fields)
    tuned = get_peft_model(copy.deepcopy(zoo).float(), config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(folder)
    return folder


@pytest.mark.long("name")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_merge_is_that_of_peft(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    zoo, base = make_base(tmp_path / "base", dtype)
    adapter = train(tmp_path / "a", zoo, CASES[name])
    adaptertool.merge(base, [adapter], tmp_path / "out")
    check(base, tmp_path / "out", peft_merge(zoo, adapter), CASES[name].edited)


@pytest.mark.parametrize("name", CASES)
def test_the_merged_layers_compute_what_forward_does(tmp_path: Path, name: str) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapter = train(tmp_path / "a", zoo, CASES[name])
    adaptertool.merge(base, [adapter], tmp_path / "out")
    merged = copy.deepcopy(zoo)
    merged.load_state_dict(load(tmp_path / "out"))
    tuned = PeftModel.from_pretrained(copy.deepcopy(zoo), adapter).base_model.model
    for layer, shape in (("linear", (3, 16)), ("square", (2, 4, 5, 5)), ("point", (2, 12, 3, 3))):
        inputs = torch.randn(shape)
        with torch.no_grad():
            found, wanted = (model.get_submodule(layer)(inputs) for model in (merged, tuned))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
