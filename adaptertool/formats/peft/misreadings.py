"""Other ways to read the config of an adapter, which some tools take: for verify."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from adaptertool.formats.peft.config import LoraConfig, parse_config
from adaptertool.formats.peft.keys import CONFIG
from adaptertool.kinds import kind_of
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Edit


def misreadings(adapter: Adapter) -> Mapping[str, Callable[[Edit], Edit]]:
    """What the edits of the adapter are to a tool that has a fault, by the name of the fault."""
    config = parse_config(adapter.path / CONFIG, adapter.fields)
    found = {}
    if config.rank_stabilised:
        found["rslora-ignored"] = _scaled_as(config, rank_stabilised=False)
    if config.alpha_pattern:
        found["alpha-pattern-ignored"] = _scaled_as(config, alpha_pattern={})
    return found


def _scaled_as(config: LoraConfig, **other: object) -> Callable[[Edit], Edit]:
    misread = dataclasses.replace(config, **other)  # type: ignore[arg-type]

    def read(edit: Edit) -> Edit:
        own = config.scale_of(edit.module)
        if kind_of(edit).replaces or not own:
            return edit
        return edit._replace(scale=edit.scale * misread.scale_of(edit.module) / own)

    return read
