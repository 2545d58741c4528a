"""`adapter_config.json` of mlx-lm: all options of its training, of which the loader reads `fine_tune_type`,
`num_layers` and `lora_parameters`. Every layer has one rank and one scale, and the scale stands there itself: there is
no alpha (tuner/utils.py of mlx-lm 0.32.2)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.formats.format import Facts
from adaptertool.formats.mlx.keys import FORMAT, PARAMETERS, TYPE
from adaptertool.kinds import FULL, SPELLED, Kind
from adaptertool.kinds.spelling import Spelling
from adaptertool.records import dataclass

WHOLE = "full"  # of TYPE: tensors of the model itself
_KNOWN = frozenset({"rank", "scale", "dropout", "keys", "alpha"})


@dataclass(frozen=True, slots=True)
class MlxConfig:
    """What the arithmetic depends on."""

    path: Path
    kind: Kind
    spelling: Spelling | None  # None: whole tensors
    rank: int
    scale: float


def parse_config(path: Path, fields: Mapping[str, Any]) -> MlxConfig:
    """Raises UnsupportedError for what is refused by name, InputError for values of a wrong type."""
    said = fields.get(TYPE, "lora")
    if said == WHOLE:
        return MlxConfig(path, FULL, None, 0, 1.0)
    found = SPELLED.get((FORMAT, said)) if isinstance(said, str) else None
    if found is None:
        raise UnsupportedError(f"{path}: {TYPE} {shown(said)[:80]} is not known; lora, dora and full are")
    parameters = fields.get(PARAMETERS)
    if not isinstance(parameters, dict):
        _refuse_other(path, fields)
    for name in parameters:
        if name not in _KNOWN:
            raise UnsupportedError(
                f"{path}: {PARAMETERS} has {shown(name)} = {shown(parameters[name])[:80]}: this field is not known; it "
                "may change the arithmetic, so it is not ignored"
            )
    rank, alpha = parameters.get("rank"), parameters.get("alpha")
    scale: Any = parameters.get("scale")
    if type(rank) is not int or rank < 1:
        raise InputError(f"{path}: rank of {PARAMETERS} must be a whole number from 1 on, not {shown(rank)[:80]}")
    if scale is None:
        more = f" and alpha {shown(alpha)[:80]} does not make one" if alpha is not None else " and none is assumed"
        raise InputError(f"{path}: {PARAMETERS} has no scale,{more}: write the one that it was trained with")
    if type(scale) not in (int, float):
        raise InputError(f"{path}: scale of {PARAMETERS} must be a number, not {shown(scale)[:80]}")
    if not abs(scale) <= sys.float_info.max:
        raise InputError(f"{path}: scale of {PARAMETERS} is {shown(scale)[:80]}; the config is damaged")
    if alpha not in (None, rank):
        raise UnsupportedError(
            f"{path}: {PARAMETERS} has alpha {shown(alpha)[:80]} beside rank {rank} and scale {scale}: until June 2024 "
            "mlx-lm multiplied the scale by alpha/rank, and now it ignores alpha. Take alpha out for the one, or "
            "write the product as the scale for the other"
        )
    return MlxConfig(path, *found, rank, float(scale))


def _refuse_other(path: Path, fields: Mapping[str, Any]) -> NoReturn:
    """Raises UnsupportedError for a config without lora_parameters."""
    if "rank" in fields or "alpha" in fields:
        raise UnsupportedError(
            f"{path} has rank and alpha, and no {PARAMETERS}: it is mlx-vlm's, of which some versions take alpha for "
            "the scale and others alpha/rank, and nothing says which wrote it: merge it there, with the version that "
            "trained it"
        )
    raise InputError(f"{path} has no {PARAMETERS}, which say the scale")


def facts(fields: Mapping[str, Any]) -> Facts:
    """What the config says; a scale is no alpha."""
    parameters = fields.get(PARAMETERS)
    model = fields.get("model")
    return Facts(
        kind=str(fields.get(TYPE, "lora")),
        version=None,
        trained_on=model if isinstance(model, str) and model else None,
        initialiser="default",
        rank_stabilised=False,
        rank=parameters.get("rank") if isinstance(parameters, dict) else None,
        alpha=None,
        scale="lora_parameters.scale",
    )
