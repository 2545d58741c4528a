"""The plan of an interpolation that is weighted by Fisher information."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from decimal import Decimal

from adaptertool.codecs import COMPUTED
from adaptertool.errors import MismatchError, UsageError, argument, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.planning.schedules import ALL, Choice
from adaptertool.planning.wise import plan_wise
from adaptertool.resolution.correspondence import Counterparts, counterparts
from adaptertool.resolution.nearest import nearest
from adaptertool.spec.plan import Plan, Step
from adaptertool.spec.schedule import WHOLE, Schedule


def plan_fisher(
    base: Checkpoint,
    tuned: Checkpoint,
    fisher: tuple[Checkpoint, Checkpoint],
    alphas: Sequence[Decimal],
    share: Schedule = WHOLE,
    choice: Choice = ALL,
) -> Plan:
    """The plan as of plan_wise, of two checkpoints; each tensor with its weights (methods.fisher).

    Raises UsageError for an α outside of 0..1, where a weighted mean has no meaning; MismatchError for weights that
    are not those of the base.
    """
    if outside := [alpha for alpha in alphas if not 0 <= alpha <= 1]:
        raise UsageError(f"with Fisher weights alpha lies in 0..1, not at {outside[0]}")
    plan = plan_wise(base, tuned, alphas, share, choice)
    shares = {step.spec.name: step.share for step in plan.steps() if step.share is not None}
    if beyond := {name: float(factor) for name, factor in shares.items() if not 0 <= factor <= 1}:
        name, factor = next(iter(beyond.items()))
        raise UsageError(
            f"with Fisher weights {argument('weight')} lies in 0..1, not at {factor:g} as of {shown(name)}"
        )
    found = [_fitting(base, weights, [step for step in plan.steps() if step.edits]) for weights in fisher]
    shards = tuple(
        dataclasses.replace(shard, steps=tuple(_weighted(step, found) for step in shard.steps)) for shard in plan.shards
    )
    return dataclasses.replace(
        plan,
        command="wise --fisher",
        sources=(*plan.sources, *(weights.path for weights in fisher)),
        weights=(*plan.weights, 1.0, 1.0),
        files=(*plan.files, *(weights.named for weights in fisher)),
        inputs={**plan.inputs, **{header.path: header.stamp for weights in fisher for header in weights.headers}},
        shards=shards,
        method="fisher",
        notes=(
            *plan.notes,
            *(note for weights in found for note in weights.notes),
            "where both Fisher weights are 0 it is plain Wise-FT: (1 - alpha)*W + alpha*T",
            "Fisher weights are applied in float64, and the result rounded once; it is the same everywhere, but not "
            "settled",
        ),
    )


def _weighted(step: Step, fisher: Sequence[Counterparts]) -> Step:
    if not step.edits:
        return step
    ours, theirs = (weights.tensors[step.spec.name] for weights in fisher)
    return step._replace(fisher=(ours, theirs))


def _fitting(base: Checkpoint, weights: Checkpoint, steps: Iterable[Step]) -> Counterparts:
    """The weights of each tensor, of its shape; what no arithmetic is done on may be missing."""
    fitting = counterparts(base, weights)
    for name in fitting.extra:
        raise MismatchError(f"{weights.path} has weights for {shown(name)}, which {base.path} does not hold")
    for step in steps:
        found = fitting.tensors.get(step.spec.name)
        if found is None:
            near = nearest(step.spec.name, weights.tensors)
            hint = f"; nearest there: {', '.join(map(shown, near))}" if near else ""
            raise MismatchError(f"{weights.path} has no Fisher weights for {shown(step.spec.name)}{hint}")
        if found.spec.shape != step.spec.shape or found.spec.dtype not in COMPUTED:
            raise MismatchError(
                f"{shown(step.spec.name)} is {step.spec} in {base.path}, but its Fisher weights in {weights.path} are "
                f"{found.spec}: they must be floats of that shape"
            )
    return fitting
