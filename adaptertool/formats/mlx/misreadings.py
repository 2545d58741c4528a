"""Other ways to read the scale of such an adapter, which some tools take: for verify."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from adaptertool.formats.mlx.config import parse_config
from adaptertool.formats.mlx.keys import CONFIG
from adaptertool.kinds import kind_of
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Edit

_DEFAULT = 20.0  # of mlx-lm's layers, where nobody hands on what the config says


def misreadings(adapter: Adapter) -> Mapping[str, Callable[[Edit], Edit]]:
    """What the edits of the adapter are to a tool that has a fault, by the name of the fault: the scale taken for an
    alpha and divided by the rank, as by who writes it into PEFT's lora_alpha; not read; or the default."""
    config = parse_config(adapter.path / CONFIG, adapter.fields)
    if config.spelling is None:
        return {}
    others = {
        "scale-as-alpha": config.scale / config.rank,
        "scale-ignored": 1.0,
        "scale-default": _DEFAULT,
    }
    return {fault: _scaled_as(scale) for fault, scale in others.items() if scale != config.scale}


def _scaled_as(scale: float) -> Callable[[Edit], Edit]:
    return lambda edit: edit if kind_of(edit).replaces else edit._replace(scale=scale)
