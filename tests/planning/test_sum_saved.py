"""Saved tensors in a sum: merge(base, [sum(a, b, w)]) is merge(base, [a, b], w), or the sum is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load, lora_factors, write_adapter, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from long_tests import share

import adaptertool
from adaptertool.errors import UnsupportedError
from adaptertool.tasks.sum import sum_adapters

BASE = {
    "embed.weight": (10, 5),
    "l.q.weight": (9, 7),
    "l.q.bias": (9,),
    "norm.weight": (7,),
    "head.weight": (6, 7),
}
# What an adapter may save, as PEFT calls it: the key, the shape, fields of the config.
SAVED: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "norm": ("norm.weight", (7,), {"modules_to_save": ["norm"]}),
    "head": ("head.weight", (6, 7), {"modules_to_save": ["head"]}),
    "bias": ("l.q.base_layer.bias", (9,), {"bias": "lora_only"}),
    "rows": ("embed.token_adapter.trainable_tokens_delta", (2, 5), {"trainable_token_indices": {"embed": [1, 4]}}),
    "base": ("l.q.base_layer.weight", (9, 7), {}),
}


@st.composite
def adapters(draw: st.DrawFn) -> tuple[dict[str, int], bool, bool]:
    """What is saved, from which seed: adapters of one seed save the same; whether lora_bias is set, and factors."""
    saved = draw(st.dictionaries(st.sampled_from(sorted(SAVED)), st.integers(0, 1), max_size=3))
    return saved, draw(st.booleans()), draw(st.booleans())


def make(folder: Path, saved: dict[str, int], biased: bool, factored: bool, **config: Any) -> Path:
    tensors: dict[str, torch.Tensor] = dict(lora_factors("l.q", (9, 7))) if factored or "base" in saved else {}
    if tensors and biased:
        tensors["l.q.lora_B.bias"], config["lora_bias"] = torch.randn(9), True
    for name, seed in saved.items():
        key, shape, fields = SAVED[name]
        if "lora_A" not in "".join(tensors):
            key = key.replace(".base_layer", "")
        tensors[key] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        config |= fields
    return write_adapter(folder, tensors or dict(lora_factors("l.q", (9, 7))), **config)


@given(
    several=st.lists(adapters(), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from(["1", "0.5", "0", "-0.5", "2"]), min_size=3, max_size=3),
)
@settings(max_examples=share(150), deadline=None)
def test_merging_a_sum_is_merging_its_adapters(
    tmp_path_factory: pytest.TempPathFactory, several: list[tuple[dict[str, int], bool, bool]], weights: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("law")
    base = write_checkpoint(folder / "base", {name: torch.randn(shape) for name, shape in BASE.items()})
    paths = [make(folder / str(number), *one) for number, one in enumerate(several)]
    weights = weights[: len(paths)]
    try:
        sum_adapters(paths, folder / "sum", weights=weights)
    except UnsupportedError:
        return
    adaptertool.merge(base, [folder / "sum"], folder / "one")
    adaptertool.merge(base, paths, folder / "all", weights=weights)
    one, all_ = load(folder / "one"), load(folder / "all")
    for name in BASE:
        torch.testing.assert_close(one[name], all_[name], rtol=1e-5, atol=1e-5, msg=f"{name} {several} {weights}")


def test_the_order_counts_where_a_saved_weight_replaces_factors(tmp_path: Path) -> None:
    saved, low = make(tmp_path / "a", {"base": 0}, False, True), make(tmp_path / "b", {}, False, True)
    sum_adapters([saved, low], tmp_path / "out")
    with pytest.raises(UnsupportedError, match=r"base_layer\.weight replaces what the factors .*; give .*/a first"):
        sum_adapters([low, saved], tmp_path / "no")
    with pytest.raises(UnsupportedError, match=r"replaces what .* no sum of both does so$"):
        sum_adapters([saved, saved], tmp_path / "no")


def test_a_saved_weight_under_dora_has_no_sum(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {name: torch.randn(shape) for name, shape in BASE.items()})
    magnitude = {"l.q.lora_magnitude_vector": torch.ones(9), "l.q.base_layer.weight": torch.randn(9, 7)}
    dora = write_adapter(tmp_path / "a", {**lora_factors("l.q", (9, 7)), **magnitude}, use_dora=True)
    with pytest.raises(UnsupportedError, match="DoRA"):
        sum_adapters([dora], tmp_path / "no", base=base, rank=4)
