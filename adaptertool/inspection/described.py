"""An adapter as far as it can be described, also where a merge refuses it."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.architectures.families import OTHER, family_of
from adaptertool.errors import InputError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.header import Header, read_header
from adaptertool.files.jsonfile import load_json
from adaptertool.formats.peft.config import LoraConfig, parse_config, reading
from adaptertool.formats.peft.read import CONFIG, WEIGHTS, read_adapter
from adaptertool.kinds import DORA, FULL, LORA, OFFSET
from adaptertool.kinds.lora import A, B
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref

ROWS = "rows"  # what is shown of kind full where it is for some rows of the base's tensor
_IN_PLACE = frozenset({FULL.name, OFFSET.name, ROWS})  # with an element for each of the base's
_PREFIX = "base_model.model."
# Parameters of PEFT's tuners (0.21.2); what stands before them in a key is the module.
_FACTOR = re.compile(
    r"(.+?)\.((?:lora|ada|hada|lokr|oft|boft|ia3|vera|hira|glora|randlora|vblora|fourierft|hra|miss|shira|c3a|road|delora"
    r"|gralora|tinylora|psoft|osf|waveft|bone|token_adapter)_.*|token_adapter\..*)"
)
# Fields that make a merge wrong, and leave it clear what B·A is.
_CLEAR = {"init_lora_weights": True, "alora_invocation_tokens": None, "layer_replication": None}


class Found(NamedTuple):
    """A module of the adapter, whatever its kind."""

    name: str
    kind: str
    family: str
    refs: tuple[Ref, ...]
    rank: int | None = None
    scale: float | None = None
    product: tuple[Ref, Ref] | None = None  # A and B, where the change is scale·B·A
    experts: int = 1
    grouped: bool = False  # of lora_B of experts: as of a Module

    @property
    def shape(self) -> tuple[int, int] | None:
        if self.product is None:
            return None
        a, b = self.product
        return b.spec.shape[0], math.prod(a.spec.shape[1:])

    @property
    def adapted(self) -> int | None:
        """Elements of the base that it changes; None where its tensors do not tell."""
        if self.shape is not None:
            return self.experts * math.prod(self.shape)
        return sum(ref.spec.numel for ref in self.refs) if self.kind in _IN_PLACE else None


@dataclass(frozen=True, slots=True)
class Described:
    fields: Mapping[str, Any]  # of its config
    header: Header
    modules: tuple[Found, ...]
    adapter: Adapter | None  # as a merge would have it, but for what it refuses
    refusal: str | None  # what a merge says, without the base


def describe(
    path: Path,
    base_has: Callable[[str], bool],
    base: Checkpoint | None = None,
    expert_layout: str | None = None,
) -> Described:
    """Raises InputError where its files are missing or malformed; whatever they hold is described."""
    refusal = adapter = None
    try:
        adapter = read_adapter(path, base_has, reading(expert_layout), base=base)
    except InputError as error:
        try:
            fields, header = load_json(path / CONFIG), read_header(path / WEIGHTS)
        except InputError:
            raise error from None  # it tells more
        refusal = str(error)
        try:
            adapter = read_adapter(path, base_has, functools.partial(_as_far_as_clear, expert_layout), leave_out=None)
        except InputError:
            return Described(fields, header, tuple(_by_names(fields, header)), None, refusal)
    else:
        fields, header = load_json(path / CONFIG), read_header(path / WEIGHTS)
    return Described(fields, header, tuple(map(_of_module, adapter.modules)), adapter, refusal)


def _as_far_as_clear(expert_layout: str | None, path: Path, fields: Mapping[str, Any]) -> LoraConfig:
    return parse_config(path, {**fields, **_CLEAR}, expert_layout)


def _of_module(module: Module) -> Found:
    refs = tuple(module.factors.values())
    if module.kind not in (LORA.name, DORA.name):
        kind = module.kind if module.rows is None else ROWS
        return Found(module.name, kind, family_of(module.name), refs, scale=None)
    a, b = module.factors[A], module.factors[B]
    wide = a.shape[0]
    fit = len(a.shape) >= 2 and b.shape[1:2] == (wide,) and math.prod(b.shape[2:]) == 1 and wide % module.rank == 0
    return Found(
        module.name,
        module.kind,
        family_of(module.name),
        refs,
        module.rank,
        module.scale,
        (a, b) if fit else None,
        wide // module.rank,
        module.grouped,
    )


def _by_names(fields: Mapping[str, Any], header: Header) -> Iterator[Found]:
    """Of a kind that is not handled: tensors by the module whose parameters they are."""
    kind = str(fields.get("peft_type")).lower()
    rank = fields.get("r")
    groups: dict[tuple[str, str], list[Ref]] = {}
    for key, ref in header.tensors.items():
        name = key.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(name)
        plain = name, FULL.name if key != name else kind  # prompts have no such prefix
        place = (match[1], kind) if match else plain
        groups.setdefault(place, []).append(ref)
    for (name, own), refs in groups.items():
        is_rank = own == kind and type(rank) is int
        family = family_of(name) if name != "prompt_embeddings" else OTHER
        yield Found(name, own, family, tuple(refs), rank if is_rank else None)
