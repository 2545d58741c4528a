"""Other ways to read the config of an adapter, which some tools take: for verify."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from adaptertool.files.jsonfile import load_json
from adaptertool.formats.peft.config import LoraConfig, parse_config
from adaptertool.formats.peft.read import CONFIG, is_adapter
from adaptertool.kinds import kind_of
from adaptertool.spec.plan import Edit, Plan


def readings(plan: Plan) -> Mapping[str, Callable[[Edit], Edit]]:
    """Other ways to read the configs of the adapters, which some tools take."""
    configs = [_config(path) for path in plan.sources]
    readings = {}
    if any(config is not None and config.rank_stabilised for config in configs):
        readings["rslora-ignored"] = _scaled_as(configs, rank_stabilised=False)
    if any(config is not None and config.alpha_pattern for config in configs):
        readings["alpha-pattern-ignored"] = _scaled_as(configs, alpha_pattern={})
    return readings


def _config(path: Path) -> LoraConfig | None:
    return parse_config(path / CONFIG, load_json(path / CONFIG)) if is_adapter(path) else None


def _scaled_as(configs: Sequence[LoraConfig | None], **other: object) -> Callable[[Edit], Edit]:
    def read(edit: Edit) -> Edit:
        config = configs[edit.adapter]
        if config is None or kind_of(edit).replaces:
            return edit
        own = config.scale_of(edit.module)
        otherwise = dataclasses.replace(config, **other).scale_of(edit.module)  # type: ignore[arg-type]
        return edit._replace(scale=edit.scale * otherwise / own) if own else edit

    return read
