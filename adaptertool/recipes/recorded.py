"""What a manifest records of one command, as the step of a recipe that makes the same again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptertool.files.hashing import SHA256
from adaptertool.methods import METHOD_BY_NAME, settings_of
from adaptertool.tasks.extract import DTYPES as FACTOR_DTYPES
from adaptertool.tasks.mergekit import COPY as CONFIG


def step_of(content: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """A manifest of one step, as the step. folder: the name of that where it lies."""
    recipe = dict(content["recipe"])
    command, _, way = str(recipe.pop("command")).partition(" ")
    sources = [one["name"] for one in recipe["sources"]]
    weights = [str(one["weight"]) for one in recipe.pop("sources") if "weight" in one]
    alphas, cut, rules = recipe.pop("alphas", None), recipe.pop("cut", {}), recipe.pop("weight_rules", [])
    by_tensor = recipe.pop("setting_rules", {})
    if command == "wise":
        weights = weights[:1]  # those behind it are of the Fisher weights
    values: dict[str, Any] = {"weights": [] if set(weights) <= {"1.0"} and not rules else [*weights, *rules]}
    if command == "merge":
        values |= {"adapters": sources}
    elif command == "wise":
        values |= {"tuned": sources[0], "alpha": ",".join(map(str, alphas)), "as_adapter": way == "--as-adapter"}
        values |= {"fisher": sources[1:]}
    elif command == "sum":
        count = len(recipe["weights"])
        values |= {"adapters": sources[:count], "base": next(iter(sources[count:]), recipe.pop("base", None))}
        recipe["weights"] = [*recipe["weights"], *rules]
    elif command == "extract":
        recipe.pop("tensors")
        named = {stored: typed for typed, stored in FACTOR_DTYPES.items()}
        values |= {"base": sources[0], "tuned": sources[1], "dtype": named[recipe.pop("dtype")]}
    elif command == "mergekit":  # the models are named in its configuration, of which OUT has a copy
        recipe |= {"config": f"{folder}/{CONFIG}", "base": None, "precision": None}
    elif command == "layers":
        recipe |= {"precision": None}
    else:
        values |= {"adapter": sources[0]}
    method = METHOD_BY_NAME.get(str(recipe.get("method")).removesuffix("_svd"))
    foreign = settings_of().keys() - (method.settings.keys() if method else ()) if command != "mergekit" else ()
    rest = {name: value for name, value in recipe.items() if name not in foreign}
    rest |= {name: [*_several(rest.get(name)), *texts] for name, texts in by_tensor.items()}
    values |= {**rest, **cut, "sha256": any(SHA256 in facts for facts in content["files"].values())}
    return {command: {name: _plain(value) for name, value in values.items() if value not in (None, [], False, "")}}


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _plain(value: Any) -> Any:
    """A number as its text, which fields take that are text on the command line; whole numbers as they are."""
    if isinstance(value, list):
        return list(map(_plain, value))
    return str(value) if isinstance(value, float) else value
