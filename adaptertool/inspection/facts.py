"""The facts of an adapter, put together for its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptertool.architectures.families import EMBEDDINGS
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats import DEFAULT
from adaptertool.formats.format import Facts
from adaptertool.inspection.capacity import capacity_of
from adaptertool.inspection.coverage import coverage_of
from adaptertool.inspection.described import Described
from adaptertool.reports.inspect import AdapterFacts, InspectedModule
from adaptertool.spec.plan import Plan

if TYPE_CHECKING:  # numpy is loaded only where tensors are touched
    from adaptertool.inspection.spectra import Measured


def modules_of(described: Described, measured: Sequence[Measured] | None) -> tuple[InspectedModule, ...]:
    """measured: one for each module; None where no factors were read."""
    return tuple(
        InspectedModule(
            name=module.name,
            family=module.family,
            kind=module.kind,
            shape=module.shape,
            experts=module.experts,
            rank=module.rank,
            scale=module.scale,
            dtypes=tuple(dict.fromkeys(ref.spec.dtype for ref in module.refs)),
            parameters=sum(ref.spec.numel for ref in module.refs),
            spectrum=measured[number].spectrum if measured else None,
            base_norm=measured[number].base_norm if measured else None,
            problem=measured[number].problem if measured else None,
        )
        for number, module in enumerate(described.modules)
    )


def adapter_facts(
    described: Described,
    modules: tuple[InspectedModule, ...],
    base: Checkpoint | None,
    plan: Plan | None,
    needed: float | None,
) -> AdapterFacts:
    """plan: of a merge into `base`, where there can be one; needed: bits of the training data."""
    said, header = described.format.facts(described.fields), described.header
    tensors = described.adapter.tensors if described.adapter else header.tensors
    ignored = described.adapter.ignored if described.adapter else frozenset()
    trainable = sum(ref.spec.numel for name, ref in tensors.items() if name not in ignored)
    layers = [module for module in modules if module.family != EMBEDDINGS]  # embeddings are looked up, not multiplied
    forms = [(*module.shape, module.rank) for module in layers if module.shape and module.rank]
    return AdapterFacts(
        peft_type=said.kind,
        peft_version=said.version if described.format is DEFAULT else None,
        format=described.format.name,
        written_by=f"{said.tool} {said.version}" if said.version else None,
        trained_on=said.trained_on,
        initialiser=said.initialiser,
        rank_stabilised=said.rank_stabilised,
        scaled_by=_scaled_by(said, described),
        kinds=dict(Counter(module.kind for module in modules)),
        dtypes=dict(Counter(ref.spec.dtype for ref in tensors.values())),
        tensors=len(tensors),
        bytes=described.header.size,
        modules=modules,
        coverage=coverage_of(described.modules, base, plan),
        capacity=capacity_of(trainable, forms, needed),
    )


def _scaled_by(said: Facts, described: Described) -> str:
    """What the scales are made of. Single files have an alpha for each module, or one in their metadata, or none."""
    if said.rank_stabilised:
        return "alpha/√r"
    header, config = described.header, described.format.files.config
    by_tensors = any(name.endswith(".alpha") for name in header.tensors)
    by_metadata = any("alpha" in text for text in (header.metadata or {}).values())
    by_fields = said.alpha is not None and (config is not None or header.typed is not None)
    told = by_tensors or by_metadata or by_fields or said.scale != Facts._field_defaults["scale"]
    return said.scale if told else "no alpha is given"
