"""How the columns of lora_B of fused experts are packed, for E experts of rank r: (out, E·r).

rank_major: column j·E + e is direction j of expert e, the expert fastest: PEFT's own layout. grouped_by_expert: it is
column e·r + j, as unsloth trained before its versions of September 2026; since then it says which in the config. Both
have the same shape, so nothing but the config, or the user, can tell. With one expert, or rank 1, they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError, UnsupportedError, UsageError, shown
from adaptertool.records import dataclass
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.choices import EXPERT_LAYOUTS, GROUPED, RANK_MAJOR

LAYOUT, DETAIL = FIELDS = ("lora_B_layout", "unsloth_fused_expert_lora")  # of the config; the second by parameter
_ALL = ""


@dataclass(frozen=True, slots=True)
class Packing:
    """What the config says, and the user."""

    path: Path  # of the config
    said: Mapping[str, str]  # layout by the name of a parameter, or for _ALL
    by_unsloth: bool
    asked: str | None  # counts where the config does not say

    def of(self, parameter: str) -> str:
        return self._said(parameter) or self.asked or RANK_MAJOR

    def notes(self, parameters: set[str]) -> Iterator[str]:
        """What to say of those where the two layouts differ."""
        left = sorted(name for name in parameters if self._said(name) is None)
        if self.asked and (other := sorted(parameters - set(left))) and self.of(other[0]) != self.asked:
            yield f"{self.path}: it says {LAYOUT} {self.of(other[0])}, which counts, not --expert-layout {self.asked}"
        if left and self.asked:
            yield f"{self.path}: lora_B of {', '.join(map(shown, left))} is read as {self.asked} (--expert-layout)"
        elif left and self.by_unsloth:
            yield (
                f"{self.path}: unsloth wrote it, and it has no {LAYOUT}: lora_B of {', '.join(map(shown, left))} is "
                f"read as {RANK_MAJOR}, as PEFT does; unsloth before September 2026 trained it as {GROUPED}: then "
                f"give --expert-layout {GROUPED}"
            )

    def _said(self, parameter: str) -> str | None:
        return self.said.get(parameter, self.said.get(_ALL))


def packing_of(path: Path, fields: Mapping[str, Any], asked: str | None) -> Packing:
    """asked: by the user. Raises UnsupportedError for a layout that is not known, or is said twice and differs."""
    if asked is not None and asked not in EXPERT_LAYOUTS:
        raise UsageError(f"expert_layout is {' or '.join(EXPERT_LAYOUTS)}, not {asked!r}")
    said = {_ALL: fields[LAYOUT]} if fields.get(LAYOUT) else {}
    detail = fields.get(DETAIL) or {}
    parameters = detail.get("parameters") or {} if isinstance(detail, dict) else None
    if not isinstance(parameters, dict) or not all(isinstance(own, dict) for own in parameters.values()):
        raise InputError(f"{path}: {DETAIL} must be an object with parameters, not {shown(detail)[:80]}")
    if detail.get("lora_A_layout", GROUPED) != GROUPED:
        raise UnsupportedError(f"{path}: {DETAIL}: lora_A_layout {shown(detail['lora_A_layout'])[:80]} is not known")
    said |= {name: own[LAYOUT] for name, own in parameters.items() if own.get(LAYOUT)}
    for name, layout in said.items():
        if layout not in EXPERT_LAYOUTS:
            where = f" of {shown(name)}" if name else ""
            raise UnsupportedError(
                f"{path}: {LAYOUT} {shown(layout)[:80]}{where} is not known; {', '.join(EXPERT_LAYOUTS)} are"
            )
        if layout != said.get(_ALL, layout):
            raise UnsupportedError(f"{path}: it says {LAYOUT} {said[_ALL]}, and {layout} for {shown(name)}")
    mapping = fields.get("auto_mapping")
    by_unsloth = isinstance(mapping, dict) and bool(mapping.get("unsloth_fixed"))
    return Packing(path, said, by_unsloth, asked)


def as_peft_packs(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an adapter whose lora_B is in PEFT's layout: it says so where it might be taken for another."""
    packing = packing_of(Path(), fields, None)
    plain = {name: value for name, value in fields.items() if name not in FIELDS}
    told = packing.said or (packing.by_unsloth and fields.get("target_parameters"))
    return plain | {LAYOUT: RANK_MAJOR} if told else plain


def layout_of(adapter: Adapter, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the config of a copy of its factors is to say besides `fields`, its own: what the user has said."""
    asked = not any(fields.get(name) for name in FIELDS)
    return {LAYOUT: GROUPED} if asked and any(module.grouped for module in adapter.modules) else {}
