"""The plan of a merge by a method: the changes that several sources make to the base, each by itself, combined."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from adaptertool.errors import UnsupportedError, UsageError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.methods.method import note_of
from adaptertool.planning.assemble import make_plan
from adaptertool.planning.edits import adapter_edits, changed_by
from adaptertool.planning.finetuned import full_edits
from adaptertool.planning.layout import TensorSetChange
from adaptertool.planning.schedules import ALL, Choice, Weigher, Weight, usual
from adaptertool.planning.settings import ALIKE, ByTensor, Setter
from adaptertool.planning.unfit import NONE_TIED
from adaptertool.resolution.resolve import Base, open_base
from adaptertool.resolution.ties import FLAG
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Blend, Edit, Output, Plan
from adaptertool.spec.schedule import Schedule
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
    base: Checkpoint,
    sources: Sequence[Adapter | Checkpoint],
    weights: Sequence[Weight],
    blend: Blend,
    choice: Choice = ALL,
    settings: ByTensor = ALIKE,
) -> Plan:
    """Sources are adapters and fine-tuned checkpoints of the base. Raises UsageError, InputError.

    blend: of tensors of which no rule of `weights` or `settings` speaks
    """
    subject = open_base(base) if any(isinstance(source, Adapter) for source in sources) else None
    blends = Blends(blend, weights, settings, subject or base)
    edits, changes, notes = _adapter_edits(subject, sources, weights, choice, blends)
    equal = _checkpoint_edits(base, sources, choice, edits, notes)
    _require_one_blend({} if subject is None or changes.apart else subject.ends, edits, blends)
    own = {name: blends.of(name) for name, chain in edits.items() if chain}
    for one in {id(one): one for one in own.values()}.values() or [blend]:
        require_fit(one)
        _require_still(one, sources)
    changed = changed_by(edits, len(sources))
    notes += [*blends.weigh.notes(changed), *blends.set.notes(changed)]
    method = METHOD_BY_NAME[blend.method]
    notes.append(note_of(method.name))
    usuals = list(map(usual, weights))
    plan = make_plan("merge", base, sources, usuals, edits, changes, (Output("", 1.0),), notes, equal)
    shards = tuple(
        dataclasses.replace(
            shard,
            steps=tuple(step._replace(blend=own[step.spec.name]) if step.edits else step for step in shard.steps),
        )
        for shard in plan.shards
    )
    return dataclasses.replace(plan, shards=shards, method=method.name)


class Blends:
    """The blend of each tensor; those that are alike are one."""

    def __init__(self, blend: Blend, weights: Sequence[Weight], settings: ByTensor, base: Base | Checkpoint) -> None:
        """base: with the ends that are not stored, which adapters may change, or as it is. Raises UsageError for a rule
        that fits no tensor of it."""
        self.method, self._blend, self._known = blend.method, blend, dict[object, Blend]()
        ruled = bool(settings.schedules) or any(isinstance(one, Schedule) and one.rules for one in weights)
        tied = open_base(base).ends if ruled and isinstance(base, Checkpoint) else NONE_TIED
        self.weigh = Weigher(weights, base.tensors, tied=tied)
        self.set = Setter(METHOD_BY_NAME[blend.method], settings, base.tensors, tied)

    def of(self, name: str) -> Blend:
        """Raises UsageError for a setting that is out of its range, or that nothing says."""
        weights = tuple(self.weigh(number, name) for number in range(len(self._blend.weights)))
        chosen = self.set.of(name)
        if (weights, chosen) not in self._known:
            settings = {**self._blend.settings, **dict(chosen)}
            self._known[weights, chosen] = Blend(self._blend.method, weights, settings)
        return self._known[weights, chosen]

    def are_one(self, name: str, other: str) -> bool:
        """Whether two tensors have the same weights and settings. Raises as `of` does."""
        return self.of(name) is self.of(other)


def _require_one_blend(ends: Mapping[str, str], edits: Mapping[str, Sequence[Edit]], blends: Blends) -> None:
    """Raises UnsupportedError for tied ends that a checkpoint changes, and with them both, in one way, where weights or
    settings would have them combined in two."""
    for end, source in ends.items():
        if edits.get(source) and not blends.are_one(end, source):
            raise UnsupportedError(
                f"{shown(end)} and {shown(source)} are tied, a checkpoint changes both as one, and the weights or "
                f"settings given for them differ: give both the same, or save base and checkpoint with both ends and "
                f"{FLAG}: false"
            )


def _require_still(blend: Blend, sources: Sequence[Adapter | Checkpoint]) -> None:
    """Raises UnsupportedError where a method changes what a source does not, and a source is an adapter."""
    method = METHOD_BY_NAME[blend.method]
    if method.moves is None or not any(isinstance(source, Adapter) for source in sources):
        return
    if method.moves(blend.weights, blend.settings):
        raise UnsupportedError(
            f"{method.name} without normalize, and with weights that add up to {sum(blend.weights):g}, scales whole "
            "models, also what an adapter leaves as it is: merge each adapter first, and give the checkpoints"
        )


def _adapter_edits(
    subject: Base | None,
    sources: Sequence[Adapter | Checkpoint],
    weights: Sequence[Weight],
    choice: Choice,
    blends: Blends,
) -> tuple[dict[str, list[Edit]], TensorSetChange, list[str]]:
    """What each adapter changes by itself, as `adapter_edits` tells it. subject: the base, if there is an adapter.
    Raises UnsupportedError for a change of the set of tensors that has no meaning here."""
    if subject is None:
        return {}, TensorSetChange(), []
    numbers = [number for number, source in enumerate(sources) if isinstance(source, Adapter)]
    adapters = [source for source in sources if isinstance(source, Adapter)]
    own = [weights[number] for number in numbers]
    edits, changes, notes = adapter_edits(subject, adapters, own, choice, combined_alike=blends.are_one)
    # The blend has the weights. Here they have told which tied ends come apart.
    edits = {name: [e._replace(adapter=numbers[e.adapter], weight=1.0) for e in own] for name, own in edits.items()}
    if changes.grown or changes.head or (changes.apart and len(numbers) < len(sources)):
        what = (
            "resizes the vocabulary"
            if changes.resized
            else "pads a weight with zeros"
            if changes.padded
            else "brings a new head"
            if changes.head
            else "beside checkpoints, and two tied ends whose changes, weights or settings are not the same for both"
        )
        raise UnsupportedError(f"{sources[numbers[0]].path} {what}; the method {blends.method} cannot be used there")
    return edits, changes, notes


def _checkpoint_edits(
    base: Checkpoint,
    sources: Sequence[Adapter | Checkpoint],
    choice: Choice,
    edits: dict[str, list[Edit]],
    notes: list[str],
) -> list[tuple[Ref, Ref]]:
    """Add what each checkpoint changes to `edits` and `notes`; the pairs that must be equal."""
    equal: list[tuple[Ref, Ref]] = []
    for number, source in enumerate(sources):
        if isinstance(source, Adapter):
            continue
        own, pairs, more = full_edits(base, source, choice)
        equal += pairs
        notes += more
        for name, full in own.items():
            edits.setdefault(name, []).extend(edit._replace(adapter=number) for edit in full)
    return equal
