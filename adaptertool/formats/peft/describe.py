"""What the files of an adapter of PEFT's say, of whatever kind it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adaptertool.errors import without_secrets
from adaptertool.files.parsed import Parsed
from adaptertool.formats.format import Facts, Group
from adaptertool.formats.peft.fields import alpha_field_of
from adaptertool.formats.peft.keys import CONFIG, PREFIX, TUNER_PARAMETER, WEIGHTS
from adaptertool.kinds import FULL
from adaptertool.patterns import regex
from adaptertool.spec.tensors import Ref

# What stands before a parameter of a tuner in a key is the module.
_FACTOR = regex(rf"(.+?)\.((?:{TUNER_PARAMETER.pattern}|token_adapter)(?:\..*)?)")


def by_names(files: Parsed) -> Iterator[Group]:
    """The tensors of a kind that is not handled by the module whose parameters they are."""
    fields = files.json(CONFIG)
    kind = str(fields.get("peft_type")).lower()
    rank = fields.get("r")
    groups: dict[tuple[str, str], list[Ref]] = {}
    for key, ref in files.header(WEIGHTS).tensors.items():
        name = key.removeprefix(PREFIX)
        match = _FACTOR.fullmatch(name)
        plain = name, FULL.name if key != name else kind  # prompts have no such prefix
        place = (match[1], kind) if match else plain
        groups.setdefault(place, []).append(ref)
    for (name, own), refs in groups.items():
        yield Group(name, own, tuple(refs), rank if own == kind and type(rank) is int else None)


def facts(fields: Mapping[str, Any]) -> Facts:
    return Facts(
        kind=str(fields.get("peft_type")),
        version=_text(fields, "peft_version"),
        trained_on=without_secrets(_text(fields, "base_model_name_or_path") or "") or None,
        initialiser=_initialiser(fields.get("init_lora_weights")),
        rank_stabilised=fields.get("use_rslora") is True,
        rank=fields.get("r"),
        alpha=None if (name := alpha_field_of(fields)) is None else fields.get(name),
    )


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) and value else None


def _initialiser(init: object) -> str:
    """In PEFT true is Kaiming for A and zeros for B, and false random numbers for both."""
    if isinstance(init, str):
        return init
    return "random" if init is False else "default"
