"""An adapter as far as it can be described, also where a merge refuses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.architectures.families import OTHER, family_of
from adaptertool.errors import InputError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.header import Header
from adaptertool.files.parsed import Parsed
from adaptertool.formats import format_at
from adaptertool.formats.format import Format, Group
from adaptertool.kinds import BY_NAME, KINDS, kind_of
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.parts import parts_of
from adaptertool.records import dataclass
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref

ROWS = "rows"  # what is shown of kind full where it is for some rows of the base's tensor
# With an element for each of the base's
_IN_PLACE = frozenset({ROWS, *(kind.name for kind in KINDS if kind.elementwise)})


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
    factors: Mapping[str, Ref] | None = None  # where the change is a product of what they make (Kind.low_rank)

    @property
    def has_spectrum(self) -> bool:
        """Whether factors alone tell the singular values of the change."""
        return self.product is not None or self.factors is not None

    @property
    def shape(self) -> tuple[int, int] | None:
        """(out, in) of the change of one expert, where that is known."""
        if self.product is not None:
            a, b = self.product
            return b.spec.shape[0], math.prod(a.spec.shape[1:])
        if self.factors is None:
            return None
        return BY_NAME[self.kind].weight_of({role: ref.shape for role, ref in self.factors.items()})

    @property
    def adapted(self) -> int | None:
        """Elements of the base that it changes; None where its tensors do not tell."""
        if self.shape is not None:
            return self.experts * math.prod(self.shape)
        return sum(ref.spec.numel for ref in self.refs) if self.kind in _IN_PLACE else None


@dataclass(frozen=True, slots=True)
class Described:
    files: Parsed
    format: Format
    modules: tuple[Found, ...]
    adapter: Adapter | None  # as a merge would have it, but for what it refuses
    refusal: str | None  # what a merge says, without the base

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of its config, or what stands for one."""
        config = self.format.files.config
        return self.header.fields if config is None else self.files.json(config)

    @property
    def header(self) -> Header:
        """The header of its file of tensors."""
        return self.files.header(self.format.files.weights_at(self.files.path))


def describe(
    path: Path,
    base_has: Callable[[str], bool],
    base: Checkpoint | None = None,
    expert_layout: str | None = None,
) -> Described:
    """Raises InputError where its files are missing or malformed; whatever they hold is described."""
    files, own = Parsed(path), format_at(path)
    refusal = None
    try:
        adapter = own.read(files, base_has, base=base, expert_layout=expert_layout)
    except InputError as error:
        refusal = str(error)
        try:
            if own.files.config is not None:
                files.json(own.files.config)
            files.header(own.files.weights_at(path))
        except InputError:
            raise error from None  # it tells more
        try:
            adapter = own.read_as_far_as_clear(files, base_has, expert_layout)
        except InputError:
            return Described(files, own, tuple(map(_of_group, own.by_names(files))), None, refusal)
    return Described(files, own, tuple(map(_of_module, adapter.modules)), adapter, refusal)


def _of_group(group: Group) -> Found:
    family = family_of(group.name) if group.name != "prompt_embeddings" else OTHER
    return Found(group.name, group.kind, family, group.refs, group.rank)


def _of_module(module: Module) -> Found:
    refs, kind = tuple(stored for ref in module.factors.values() for stored in ref.stored), kind_of(module)
    (part, *others) = parts_of(module) or (module,)
    if part is not module and not others and kind_of(part).is_product:
        own = part.factors[A], part.factors[B]
        return Found(module.name, module.kind, family_of(module.name), refs, module.rank, part.scale, own)
    if not kind.pair:
        name = module.kind if module.rows is None else ROWS
        found = Found(module.name, name, family_of(module.name), refs, scale=None)
        if kind.low_rank is None or kind.weight_of({role: ref.shape for role, ref in module.factors.items()}) is None:
            return found
        return found._replace(rank=module.rank, scale=module.scale, factors=module.factors)
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
