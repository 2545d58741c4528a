"""The plan of an interpolation: W + α·(W' − W) for each α."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from decimal import Decimal

from adaptertool.errors import UnsupportedError, UsageError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.planning.assemble import make_plan
from adaptertool.planning.edits import adapter_edits
from adaptertool.planning.finetuned import full_edits
from adaptertool.planning.layout import TensorSetChange
from adaptertool.planning.schedules import ALL, Choice, Weigher, usual
from adaptertool.planning.unfit import NONE_TIED
from adaptertool.resolution.resolve import Base, open_base
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Output, Plan
from adaptertool.spec.schedule import WHOLE, Schedule

MAX_DIGITS = 20  # of an alpha, in the name of its folder


def plan_wise(
    base: Checkpoint, tuned: Checkpoint, alphas: Sequence[Decimal], share: Schedule = WHOLE, choice: Choice = ALL
) -> Plan:
    """W + α·f·(T − W) for each α, where T is the tuned checkpoint. share: f, the factor of each tensor"""
    edits, equal, notes = full_edits(base, tuned, choice)
    notes = [*_outside(alphas), *notes]
    tied = open_base(base).ends if share.rules else NONE_TIED
    notes += Weigher([share], base.tensors, tied=tied).notes([edits])
    plan = make_plan("wise", base, [tuned], [1.0], edits, TensorSetChange(), _outputs(alphas), notes, equal)
    return _shared(plan, share, base.tensors)


def plan_towards(
    subject: Base, adapter: Adapter, alphas: Sequence[Decimal], share: Schedule = WHOLE, choice: Choice = ALL
) -> Plan:
    """W + α·f·(T − W) for each α, where T is the base with the adapter merged; share: f, the factor of each tensor.
    Raises UnsupportedError where there is nothing between, as for a new head."""
    edits, changes, notes = adapter_edits(subject, [adapter], [share], choice)
    # The steps have the shares, as exact as α. Here they have told which tied ends come apart.
    edits = {name: [edit._replace(weight=1.0) for edit in own] for name, own in edits.items()}
    if (changes.resized or changes.head) and any(alpha != 1 or share != WHOLE for alpha in alphas):
        what = "resizes the vocabulary; between embeddings of different sizes there is nothing"
        if changes.head:
            what = "brings a new head; between none and it there is nothing"
        raise UnsupportedError(f"{adapter.path} {what}")
    notes = [*_outside(alphas), *notes, *Weigher([share], subject.tensors).notes([edits])]
    plan = make_plan("wise", subject.base, [adapter], [1.0], edits, changes, _outputs(alphas), notes)
    return _shared(plan, share, subject.tensors)


def _shared(plan: Plan, share: Schedule, names: Collection[str]) -> Plan:
    """The plan with the share of α that each tensor has, which its edits do not know of."""
    if share == WHOLE:
        return plan
    weigh = Weigher([share], names)
    shards = tuple(
        dataclasses.replace(
            shard,
            steps=tuple(
                step._replace(share=weigh.exact(0, step.spec.name)) if step.edits else step for step in shard.steps
            ),
        )
        for shard in plan.shards
    )
    return dataclasses.replace(plan, shards=shards, weights=(usual(share),))


def _outside(alphas: Sequence[Decimal]) -> list[str]:
    return [f"alpha {alpha} lies outside 0..1: this extrapolates" for alpha in alphas if not 0 <= alpha <= 1]


def _outputs(alphas: Sequence[Decimal]) -> tuple[Output, ...]:
    return in_folders(alphas) if len(alphas) > 1 else (Output("", float(alphas[0])),)


def in_folders(alphas: Sequence[Decimal]) -> tuple[Output, ...]:
    """alpha-0.300 and so on: three decimals, more for all where one needs them. Raises UsageError."""
    digits = max(3, *(-int(alpha.normalize().as_tuple().exponent) for alpha in alphas))
    if digits > MAX_DIGITS or any(abs(alpha) >= 10**MAX_DIGITS for alpha in alphas):
        raise UsageError(f"an alpha with more than {MAX_DIGITS} digits before or after the point names no folder")
    return tuple(Output(f"alpha-{alpha:.{digits}f}", float(alpha)) for alpha in alphas)
