"""The formats of single files, as the records that the rest of the program asks. They differ by what their keys begin
with, and by nothing else: what the tensors mean is told by what follows the names of modules."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NoReturn

from adaptertool.errors import UnsupportedError
from adaptertool.formats import comfy_write, diffusers_write
from adaptertool.formats.format import Facts, Format, Move, without_beside
from adaptertool.formats.kohya import keys, write
from adaptertool.formats.kohya.keys import FILES, by_names, recognise
from adaptertool.formats.kohya.layers import layered
from adaptertool.formats.kohya.misreadings import misreadings
from adaptertool.formats.kohya.read import read_adapter
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


KOHYA, COMFY, DIFFUSERS = (
    Format(
        name=name,
        files=FILES,
        recognise=functools.partial(recognise, name),
        read=functools.partial(read_adapter, name),
        read_as_far_as_clear=without_beside(functools.partial(read_adapter, name)),
        by_names=by_names,
        facts=functools.partial(facts, name),
        layered=layered,
        renamed=_renamed,
        misreadings=misreadings,
        save=save,
    )
    for name, save in zip(keys.NAMES, (write.SAVING, comfy_write.SAVING, diffusers_write.SAVING), strict=True)
)
