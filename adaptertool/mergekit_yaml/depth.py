"""config.json of a model whose layers are others than before: their number, and what it says of single layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.jsonfile import objects
from adaptertool.mergekit_yaml.by_code import DERIVED, FIRST_APART, INSTEAD, NUMBERED, PERIODS
from adaptertool.mergekit_yaml.layers import DEPTHS

# Lists of numbers of layers
_NUMBERED = frozenset(
    {
        "mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "moe_layers", "cross_attention_layers",
        "no_rope_layer_idxs", "global_attn_layers", "rope_scaling_layers",
    }
)  # fmt: skip
# Numbers that say what some layers are: (config, the number) -> what layer i is. As transformers 5.23 reads them.
_RULES: Mapping[str, Callable[[int, Mapping[str, Any]], Callable[[int], object]]] = {
    "first_k_dense_replace": lambda k, _: lambda i: i < k,
    "max_window_layers": lambda k, c: lambda i: bool(c.get("use_sliding_window")) and i >= k,
    "decoder_sparse_step": lambda k, _: lambda i: k > 0 and (i + 1) % k == 0,
    "full_attention_interval": lambda k, _: lambda i: k > 0 and (i + 1) % k == 0,
    "sliding_window_pattern": lambda k, _: lambda i: k > 0 and (i + 1) % k == 0,
    "interleave_moe_layer_step": lambda k, _: lambda i: k > 0 and (i + 1) % k == 0,
    "no_rope_layer_interval": lambda k, _: lambda i: k > 0 and (i + 1) % k == 0,
    "moe_layer_freq": lambda k, _: lambda i: k > 0 and i % k == 0,
    "attn_layer_period": lambda k, c: lambda i: k > 0 and i % k == c.get("attn_layer_offset", 0),
    "expert_layer_period": lambda k, c: lambda i: k > 0 and i % k == c.get("expert_layer_offset", 0),
    # Some models begin with such a layer, and some end with it
    "global_attn_every_n_layers": lambda k, _: lambda i: (k > 0 and i % k == 0, k > 0 and (i + 1) % k == 0),
    "dense_attention_every_n_layers": lambda k, _: lambda i: k > 0 and (i + 1) % k == 0,
    "num_dense_layers": lambda k, _: lambda i: i < k,
    "moe_layer_start_index": lambda k, _: lambda i: i >= k,
    "moe_layer_end_index": lambda k, _: lambda i: k < 0 or i <= k,
    "moe_layer_interval": lambda k, _: lambda i: k > 0 and (i + 1) % k == 0,
}
_PATTERN = "sliding_window_pattern"
_CYCLES = (_PATTERN, "block_types", "_block_types")  # a text or a list that is repeated over the layers
_LETTERS = "hybrid_override_pattern"  # a text with a letter for each layer
# What binds layers to each other, or has a part for each layer in one tensor: the layers stay all, as they are
_BOUND = (
    "num_kv_shared_layers", "hidden_size_per_layer_input", "attention_types", "per_layer_config", "num_mem_blocks",
    "n_layers_per_attn_res_block", "layer_group_size", "num_first_full_attention_layers", "kv_source_layers",
    "num_last_full_attention_layers", "prefix_dense_sliding_window_pattern", "ple_layer_ids", "local_layer_ids",
    "mtp_local_layer_ids", "hybrid_layer_ids", "linear_attn_config", "out_features", "kv_sharing_modes",
)  # fmt: skip
_KINDS = "layer_types"  # where it is there, it says what the attention of each layer is, and these do not
_OF_ATTENTION = frozenset({"max_window_layers", "full_attention_interval", _PATTERN, "attn_layer_period"})


class Origin(NamedTuple):
    """Where a layer of the output comes from."""

    config: Mapping[str, Any]  # of the model
    path: str
    layer: int


def with_layers(config: Mapping[str, Any], count: int, origins: Sequence[Origin]) -> dict[str, Any]:
    """A config.json of `count` layers, for those that the output has.

    The number follows; lists with something for each layer, and lists of numbers of layers, have what those of the
    origins say. Raises UnsupportedError for what cannot be said of them.
    """
    new = copy.deepcopy(dict(config))
    holders = [part for part in objects(new) if any(part.get(key) == count for key in DEPTHS)]
    if not holders:
        raise UnsupportedError(f"config.json says nowhere that there are {count} layers: {', '.join(DEPTHS)}")
    for part in holders:
        parts = [_part_like(part, new, origin, count) for origin in origins]
        _require_kinds(part, parts, origins, count)
        for key, value in list(part.items()):
            if key in DEPTHS and value == count:
                part[key] = len(origins)
            elif isinstance(value, list) and key in _NUMBERED:
                part[key] = [
                    at for at, (own, one) in enumerate(zip(parts, origins, strict=True)) if one.layer in own[key]
                ]
            elif key == _LETTERS and isinstance(value, str):
                part[key] = "".join(own[key][one.layer] for own, one in zip(parts, origins, strict=True))
            elif isinstance(value, list) and len(value) == count and not key.endswith("token_id"):
                part[key] = [own[key][one.layer] for own, one in zip(parts, origins, strict=True)]
            elif key in _RULES and type(value) is int and not (_KINDS in part and key in _OF_ATTENTION):
                _require_same(key, part, parts, origins)
    return new


def _part_like(part: Mapping[str, Any], config: Mapping[str, Any], origin: Origin, count: int) -> Mapping[str, Any]:
    """The part of the origin's config that is this part of ours. Raises UnsupportedError where it says other things of
    its layers."""
    number = next(number for number, one in enumerate(objects(config)) if one is part)
    theirs = objects(origin.config)
    own = theirs[number] if number < len(theirs) else {}
    for key, value in part.items():
        listed = isinstance(value, list) and (key in _NUMBERED or len(value) == count)
        listed = listed or (key == _LETTERS and isinstance(value, str))
        if listed and not (
            isinstance(own.get(key), type(value)) and (key in _NUMBERED or origin.layer < len(own[key]))
        ):
            raise UnsupportedError(
                f"{origin.path}: config.json says nothing of its layer {origin.layer} by {shown(key)}"
            )
    return own


def _require_kinds(
    part: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], origins: Sequence[Origin], count: int
) -> None:
    """Raises UnsupportedError where a layer would become of another kind by what is no number of config.json: a
    pattern, the code of the model, or what binds layers to each other."""
    moved = [one.layer for one in origins] != list(range(count))
    for key in _BOUND:
        if moved and (part.get(key) or any(own.get(key) for own in parts)):
            raise UnsupportedError(
                f"config.json says {key}: {shown(part.get(key))[:80]}, so its layers depend on which others there are; "
                "taking some of them, or in another order, is not supported"
            )
    model = str(part.get("model_type"))
    if moved and model in NUMBERED:
        raise UnsupportedError(
            f"a model of type {model} computes with the number of each layer: a layer in another place is another "
            "function; taking some of them, or in another order, is not supported"
        )
    for key, models in DERIVED.items():
        said = key in part or any(number in part and model in those for number, those in INSTEAD.items())
        if moved and model in models and not said:
            raise UnsupportedError(
                f"config.json does not say {key}, and the code of {model} decides by the number what a layer is: write "
                f"{key} into it, an entry for each layer (transformers does, when it saves the model)"
            )
    for at, (own, one) in enumerate(zip(parts, origins, strict=True)):
        was, will = _cycle_at(own, one.layer, count), _cycle_at(part, at, count)
        if was != will:
            raise UnsupportedError(
                f"the model ({shown(part.get('model_type'))}) has by its numbers layers of several kinds, and layer "
                f"{one.layer} of {one.path} would become another kind of layer as {at}: choose layers so that kinds "
                "stay"
            )


def _cycle_at(part: Mapping[str, Any], layer: int, count: int) -> object:
    """What the attention of a layer is, where patterns or the code of the model say it."""
    apart = layer == 0 if part.get("model_type") in FIRST_APART else None
    if _KINDS in part:
        return apart
    for key in _CYCLES:
        pattern = part.get(key)
        if isinstance(pattern, str | list) and pattern and not (isinstance(pattern, list) and len(pattern) == count):
            return apart, pattern[layer % len(pattern)]
    period = None if _PATTERN in part else PERIODS.get(str(part.get("model_type")))
    return apart, None if period is None else (layer + 1) % period == 0


def _require_same(
    key: str, part: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], origins: Sequence[Origin]
) -> None:
    """Raises UnsupportedError where a rule says of a layer of the output what it did not say where it comes from."""
    rule = _RULES[key]
    for at, (own, one) in enumerate(zip(parts, origins, strict=True)):
        was = rule(own[key], own)(one.layer) if type(own.get(key)) is int else None
        if was != rule(part[key], part)(at):
            raise UnsupportedError(
                f"{key}: {part[key]} of config.json says by its number what a layer is, and layer {one.layer} of "
                f"{one.path} would become another kind of layer as {at}: choose layers so that kinds stay"
            )
