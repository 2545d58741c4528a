"""config.json of every model of transformers whose layers are chosen anew: its own class then says of each layer what
it said of it before, or the choice is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from adaptertool.errors import UnsupportedError
from adaptertool.mergekit_yaml.by_code import DERIVED, INSTEAD
from adaptertool.mergekit_yaml.depth import _NUMBERED, Origin, with_layers

COUNT = 12
CHOICES = ([*range(1, 12)], [*range(6)], [0, *range(12)], [3, 2, 1, 0], [*range(11)])
Lists = Mapping[str, list[Any]]


def lists(config: object) -> Lists:
    """What a config of transformers says of each layer."""
    found = {name: value for name, value in vars(config).items() if isinstance(value, list | tuple)}
    return {name: [*value] for name, value in found.items() if len(value) == COUNT or name in _NUMBERED}


def made(model: str, config: Mapping[str, Any]) -> Any:
    return CONFIG_MAPPING[model](**config)


def configs_of(model: str) -> list[dict[str, Any]]:
    """A config.json with all that the class says of layers, one without, and those with what it may say instead."""
    try:
        whole = json.loads(json.dumps(made(model, {"num_hidden_layers": COUNT}).to_dict(), default=str))
        if whole.get("num_hidden_layers") != COUNT:
            return []
        rest = {name: value for name, value in whole.items() if not isinstance(value, list) or len(value) != COUNT}
        made(model, rest)
    except Exception:  # of many classes: no number of layers, or not that one
        return []
    return [whole, rest, *({**rest, number: 3} for number, models in INSTEAD.items() if model in models)]


def wanted(before: Lists, chosen: list[int]) -> Lists:
    return {
        name: [at for at, layer in enumerate(chosen) if layer in value]
        if name in _NUMBERED
        else [value[layer] for layer in chosen]
        for name, value in before.items()
    }


@pytest.mark.long
@pytest.mark.parametrize("model", sorted(CONFIG_MAPPING))
def test_layers_stay_what_they_are(model: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    for config in configs_of(model):
        before = lists(made(model, config))
        for chosen in CHOICES:
            try:
                new = with_layers(config, COUNT, [Origin(config, "base", layer) for layer in chosen])
            except UnsupportedError:
                continue
            after = vars(made(model, new))
            assert {name: [*after[name]] for name in before} == wanted(before, chosen), (config, chosen)


@pytest.mark.parametrize(("key", "model"), [(key, min(models)) for key, models in DERIVED.items()])
def test_lists_that_the_code_makes_up_are_asked_for(key: str, model: str) -> None:
    config = {"num_hidden_layers": 4, "model_type": model, **{other: ["x"] * 4 for other in DERIVED if other != key}}
    assert with_layers(config, 4, [Origin(config, "base", layer) for layer in range(4)]) == config
    with pytest.raises(UnsupportedError, match=f"does not say {key}, and the code of {model}"):
        with_layers(config, 4, [Origin(config, "base", layer) for layer in (0, 1)])
    said = {**config, key: ["a", "b", "c", "d"]}
    if model not in ("modernbert",):
        assert with_layers(said, 4, [Origin(said, "base", layer) for layer in (2, 1)])[key] == ["c", "b"]


@pytest.mark.parametrize(
    ("config", "chosen"),
    [
        ({"model_type": "diffllama"}, [0, 1]),
        ({"model_type": "modernbert", "layer_types": ["s"] * 4}, [1, 2]),
        ({"model_type": "gemma4_text", "per_layer_config": {"3": {}}}, [0, 1]),
        ({"model_type": "zamba2", "hybrid_layer_ids": [1, 3]}, [0, 1]),
        ({"model_type": "jamba", "attn_layer_period": 2, "attn_layer_offset": 1}, [1, 2]),
        ({"model_type": "llama4_text", "interleave_moe_layer_step": 2}, [1, 2]),
        ({"model_type": "qwen3_next", "full_attention_interval": 2}, [1, 2]),
    ],
)
def test_refused(config: dict[str, Any], chosen: list[int]) -> None:
    config = {"num_hidden_layers": 4, **config}
    with pytest.raises(UnsupportedError, match="layer"):
        with_layers(config, 4, [Origin(config, "base", layer) for layer in chosen])


def test_a_first_layer_that_stays_first() -> None:
    config = {"num_hidden_layers": 4, "model_type": "modernbert", "layer_types": ["f", "s", "s", "f"]}
    new = with_layers(config, 4, [Origin(config, "base", layer) for layer in (0, 3)])
    assert (new["num_hidden_layers"], new["layer_types"]) == (2, ["f", "f"])
