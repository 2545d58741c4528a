"""What has no sum: refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lora_factors, write_adapter
from layers import Zoo, make_adapter

from adaptertool.errors import MismatchError, NonFiniteError, UnsupportedError, UsageError
from adaptertool.tasks.sum import sum_adapters


def test_what_has_no_sum_is_refused_by_name(tmp_path: Path) -> None:
    zoo = Zoo()
    plain = make_adapter(tmp_path / "plain", zoo, target_modules=["linear"])
    dora = make_adapter(tmp_path / "dora", zoo, target_modules=["linear"], use_dora=True)
    with pytest.raises(UnsupportedError, match=r"dora: linear is DoRA; .* extract"):
        sum_adapters([plain, dora], tmp_path / "out")
    other = write_adapter(tmp_path / "other", lora_factors("linear", (20, 13)))
    with pytest.raises(MismatchError, match=r"linear is for a weight of 20×12 .* and of 20×13"):
        sum_adapters([plain, other], tmp_path / "out")
    embedded = {"linear.lora_embedding_A": torch.randn(4, 12), "linear.lora_embedding_B": torch.randn(20, 4)}
    with pytest.raises(MismatchError, match="lora_embedding_A"):
        sum_adapters([plain, write_adapter(tmp_path / "e", embedded)], tmp_path / "out")
    bad = {name: tensor * math.inf for name, tensor in lora_factors("linear", (20, 12)).items()}
    with pytest.raises(NonFiniteError, match="lora_A"):
        sum_adapters([plain, write_adapter(tmp_path / "bad", bad)], tmp_path / "out")
    grouped = {"c.lora_A.weight": torch.randn(4, 2, 3), "c.lora_B.weight": torch.randn(6, 2, 1)}
    with pytest.raises(MismatchError, match="make no product"):
        sum_adapters([plain, write_adapter(tmp_path / "g", grouped)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model.language_model.layers.0.q_proj", "language_model.model.layers.0.q_proj"),
        ("model.layers.0.q_proj", "layers.0.q_proj"),
        ("layers.0.q_proj", "base.layers.0.q_proj"),
    ],
)
def test_one_layer_under_two_names_is_refused(tmp_path: Path, one: str, other: str) -> None:
    first, second = (
        write_adapter(tmp_path / str(n), lora_factors(name, (6, 5))) for n, name in enumerate((one, other))
    )
    with pytest.raises(MismatchError, match="seem to be the same layer"):
        sum_adapters([first, second], tmp_path / "out")
    apart = write_adapter(tmp_path / "2", lora_factors("vision.layers.0.k_proj", (6, 5)))
    sum_adapters([first, apart], tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": ["1"]}, "1 weight for 2 adapters"),
        ({"weights": ["1", "x"]}, "weight 'x' is not a number"),
        ({"weights": ["1", "inf"]}, "not a finite number"),
        ({"weights": ["1", "1e-300"]}, "lie too far apart"),
        ({"method": "median"}, "method is cat"),
        ({"rank": 0}, "rank must be"),
        ({"energy": "1.5"}, "above 0 and at most 1"),
        ({"rank": 2, "energy": "0.5"}, "give one of"),
    ],
)
def test_wrong_calls(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    adapters = [write_adapter(tmp_path / str(n), lora_factors("x.y", (6, 5))) for n in range(2)]
    with pytest.raises(UsageError, match=message):
        sum_adapters(adapters, tmp_path / "out", **arguments)
    for none in ([], adapters[0], str(adapters[0])):
        with pytest.raises(UsageError, match="list of one or more"):
            sum_adapters(none, tmp_path / "out")  # type: ignore[arg-type]
