"""The formats of single files, as the records that the rest of the program asks. They differ by what their keys begin
with, and by nothing else: what the tensors mean is told by what follows the names of modules."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NoReturn

from adaptertool.errors import UnsupportedError
from adaptertool.formats.format import Facts, Format, Move, without_beside
from adaptertool.formats.kohya.keys import FILES, FOLDED, NAMES, by_names, recognise
from adaptertool.formats.saving import ORIGINAL, OWN, Saving
from adaptertool.late import late
from adaptertool.spec.layers import Layered


def _renamed(adapter: Layered, moves: Mapping[str, Move]) -> NoReturn:  # noqa: ARG001
    """Raises UnsupportedError."""
    raise UnsupportedError(
        f"{adapter.adapter.path} names its modules as kohya's tools do, and is not renamed; convert it to another "
        "format first (`adaptertool convert --base`)"
    )


def facts(name: str, fields: Mapping[str, Any]) -> Facts:
    """What the metadata says of the training; the tensors count."""
    return Facts(
        kind=str(fields.get("ss_network_module", name)),
        version=fields.get("ss_sd_scripts_commit_hash"),
        trained_on=fields.get("ss_sd_model_name") or fields.get("ss_base_model_version"),
        initialiser="default",
        rank_stabilised="rs_lora" in str(fields.get("ss_network_args", "")),
        rank=fields.get("ss_network_dim"),
        alpha=fields.get("ss_network_alpha"),
        tool="sd-scripts",
    )


read_adapter = late("adaptertool.formats.kohya.read", "read_adapter")
_SAVINGS = (
    Saving(draft=late("adaptertool.formats.kohya.write", "draft"), weights="", end=".safetensors", names=OWN),
    Saving(draft=late("adaptertool.formats.comfy_write", "draft"), weights="", end=".safetensors", names=ORIGINAL),
    Saving(draft=late("adaptertool.formats.diffusers_write", "draft"), weights=FOLDED, end=".safetensors"),
)
KOHYA, COMFY, DIFFUSERS = (
    Format(
        name=name,
        files=FILES,
        recognise=functools.partial(recognise, name),
        read=functools.partial(read_adapter, name),
        read_as_far_as_clear=without_beside(functools.partial(read_adapter, name)),
        by_names=by_names,
        facts=functools.partial(facts, name),
        layered=late("adaptertool.formats.kohya.layers", "layered"),
        renamed=_renamed,
        misreadings=late("adaptertool.formats.kohya.misreadings", "misreadings"),
        save=save,
    )
    for name, save in zip(NAMES, _SAVINGS, strict=True)
)
