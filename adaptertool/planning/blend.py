"""The plan of a merge by a method: the changes that several sources make to the base, each by itself, combined."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adaptertool.errors import UnsupportedError, UsageError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.planning.assemble import make_plan
from adaptertool.planning.edits import adapter_edits
from adaptertool.planning.finetuned import full_edits
from adaptertool.planning.layout import TensorSetChange
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Blend, Edit, Output, Plan
from adaptertool.spec.tensors import Ref


def require_fit(blend: Blend) -> None:
    """Raises UsageError for a number of sources beside the base that the method does not take, and for weights and
    settings that do not go together."""
    method, count = METHOD_BY_NAME[blend.method], len(blend.weights)
    wanted = method.least if method.only is None else method.only
    if count < wanted or (method.only is not None and count > wanted):
        number = "one adapter or tuned checkpoint" if wanted == 1 else f"{wanted} adapters or tuned checkpoints"
        least = "at least " if method.only is None else ""
        raise UsageError(f"{method.name} is between BASE and {least}{number}, and {count} are given")
    if method.refuses is not None and (why := method.refuses(blend.weights, blend.settings)):
        raise UsageError(f"{method.name}: {why}")


def plan_blend(
    base: Checkpoint, sources: Sequence[Adapter | Checkpoint], weights: Sequence[float], blend: Blend
) -> Plan:
    """Sources are adapters and fine-tuned checkpoints of the base. Raises UsageError, InputError."""
    method = METHOD_BY_NAME[blend.method]
    require_fit(blend)
    edits: dict[str, list[Edit]] = {}
    equal: list[tuple[Ref, Ref]] = []
    notes: list[str] = []
    changes = TensorSetChange()
    numbers = [number for number, source in enumerate(sources) if isinstance(source, Adapter)]
    if numbers and method.moves is not None and method.moves(blend.weights, blend.settings):
        raise UnsupportedError(
            f"{method.name} without normalize, and with weights that add up to {sum(blend.weights):g}, scales whole "
            "models, also what an adapter leaves as it is: merge each adapter first, and give the checkpoints"
        )
    if numbers:
        adapters = [source for source in sources if isinstance(source, Adapter)]
        edits, changes, notes = adapter_edits(open_base(base), adapters, [1.0] * len(adapters))
        edits = {name: [e._replace(adapter=numbers[e.adapter]) for e in own] for name, own in edits.items()}
    if changes.grown or changes.head or (changes.apart and len(numbers) < len(sources)):
        what = (
            "resizes the vocabulary"
            if changes.resized
            else "pads a weight with zeros"
            if changes.padded
            else "brings a new head"
            if changes.head
            else "changes one of two tied ends, beside checkpoints"
        )
        raise UnsupportedError(f"{sources[numbers[0]].path} {what}; the method {method.name} cannot be used there")
    for number, source in enumerate(sources):
        if isinstance(source, Adapter):
            continue
        own, pairs, more = full_edits(base, source)
        equal += pairs
        notes += more
        for name, full in own.items():
            edits.setdefault(name, []).extend(edit._replace(adapter=number) for edit in full)
    notes.append(f"{method.name} is computed in float64 and rounded once; it is the same everywhere, but not settled")
    plan = make_plan("merge", base, sources, weights, edits, changes, (Output("", 1.0),), notes, equal)
    shards = tuple(
        dataclasses.replace(
            shard, steps=tuple(step._replace(blend=blend) if step.edits else step for step in shard.steps)
        )
        for shard in plan.shards
    )
    return dataclasses.replace(plan, shards=shards)
