"""Configs that we write: lora_alpha, rank_pattern and alpha_pattern give each layer its own, by the rule of PEFT."""

from __future__ import annotations

import json
import math
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from layers import make_adapter
from peft import PeftModel
from torch import nn

from adaptertool.formats.format import Written
from adaptertool.formats.peft.patterns import by_pattern, check
from adaptertool.formats.peft.write import alpha_for, config_text
from adaptertool.tasks.sum import sum_adapters


@given(scale=st.floats(2.0**-40, 2.0**40), rank=st.integers(1, 600), stabilised=st.booleans())
@settings(max_examples=500, deadline=None)
def test_alpha_gives_the_scale(scale: float, rank: int, stabilised: bool) -> None:
    alpha = alpha_for(scale, rank, rank_stabilised=stabilised)
    found = alpha / math.sqrt(rank) if stabilised else alpha / rank
    assert abs(found - scale) <= 2.0**-52 * scale
    whole = max(1, round(scale))  # what a config holds comes back as it is
    scale = whole / math.sqrt(rank) if stabilised else whole / rank
    assert alpha_for(scale, rank, rank_stabilised=stabilised) == whole


@given(
    numbers=st.dictionaries(
        st.lists(st.sampled_from(["a", "b", "q+", "0", "1", "x.y"]), min_size=1, max_size=4).map(".".join),
        st.integers(1, 3),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=200, deadline=None)
def test_patterns_give_each_layer_its_own_by_the_rule_of_peft(numbers: dict[str, int]) -> None:
    fields = json.loads(config_text({}, [Written(path, number, number / 3) for path, number in numbers.items()]))
    for path, number in numbers.items():
        assert by_pattern("", fields["rank_pattern"], path, fields["r"]) == number
        assert by_pattern("", fields["alpha_pattern"], path, fields["lora_alpha"]) == alpha_for(number / 3, number)
    for pattern in fields["rank_pattern"]:
        check("", pattern)


def test_peft_wraps_just_the_layers_that_have_factors(tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"head": nn.Linear(4, 4), "b": nn.ModuleDict({"head": nn.Linear(4, 4), "x": nn.Linear(4, 4)})}
    )
    adapters = [
        make_adapter(tmp_path / "0", model, target_modules="head", r=2),
        make_adapter(tmp_path / "1", model, target_modules=["b.x"], r=3),
    ]
    sum_adapters(adapters, tmp_path / "out")
    loaded = PeftModel.from_pretrained(model, tmp_path / "out")
    assert sorted(loaded.targeted_module_names) == ["b.x", "head"]


def test_large_rank_patterns_are_few() -> None:
    """One pattern for each layer would be compiled again for each layer: Python keeps 512."""
    layers = [Written(f"m.layers.{n}.{end}_proj", 1 + n % 3, 4.0) for n in range(500) for end in "qkv"]
    fields = json.loads(config_text({}, layers))
    assert len(fields["rank_pattern"]) < 20
    assert by_pattern("", fields["rank_pattern"], "m.layers.100.k_proj", fields["r"]) == 2
