"""Codes that a run has made anew (--quantise keep), as verification takes them: as weights that are judged as those of
any tool, and as bytes that are made again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

from adaptertool.architectures.kept import kept
from adaptertool.arithmetic.kept import Kept
from adaptertool.arithmetic.verbatim import verbatim
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.engine.pool import run_jobs
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.reader import Inputs, same_bytes
from adaptertool.spec.choices import EXACT
from adaptertool.spec.plan import Plan, Step


def as_weights(plan: Plan, written: Checkpoint) -> tuple[Plan, Checkpoint]:
    """The plan, and the checkpoint that it made, with weights in the place of codes and scales that were made anew. All
    else stays as it is stored, and is compared as bytes."""
    anew = {step.spec.name for step in plan.steps() if step.keeps is not None}
    if not anew:
        return plan, written
    weights = {own.name: own.ref for name, own in (kept(written).kept or {}).items() if name in anew}
    others = {name: ref for name, ref in written.tensors.items() if name not in anew}
    shards = tuple(dataclasses.replace(shard, steps=tuple(_of_weights(shard.steps))) for shard in plan.shards)
    return dataclasses.replace(plan, shards=shards), dataclasses.replace(written, tensors=others | weights)


def _of_weights(steps: Iterable[Step]) -> Iterator[Step]:
    for step in steps:
        if step.keeps is None:
            yield step
        elif _is_codes(step):
            yield step._replace(spec=step.base.spec, keeps=None)


def _is_codes(step: Step) -> bool:
    """Whether a step makes codes, and not their scales."""
    return step.keeps is not None and step.spec.name == step.base.stored[0].spec.name


def unlike(plan: Plan, written: Checkpoint, threads: int) -> list[str]:
    """The names of weights whose codes or scales are others than when they are made again. The plan has one output."""
    (output,), found = plan.outputs, list[str]()
    stamps = {**plan.inputs, **{header.path: header.stamp for header in written.headers}}
    steps = [step for step in plan.steps() if _is_codes(step)]
    with Inputs(stamps) as inputs:
        exact = plan.precision == EXACT
        own = functools.partial(_compare, written, inputs, output.alpha, found, exact=exact)
        run_jobs((functools.partial(own, step) for step in steps), threads)
    return sorted(found)


def _compare(
    written: Checkpoint, inputs: Inputs, alpha: float, found: list[str], step: Step, space: Workspace, *, exact: bool
) -> None:
    parts = step.base.stored[:2]
    theirs = [written.tensors[ref.spec.name] for ref in parts]
    if verbatim(step, step.at(alpha)) is not None:
        same = all(map(same_bytes, parts, theirs))
    else:
        border = parts[0].spec.nbytes  # between the places of codes and of scales
        weight = Kept(inputs, step, {parts[0].spec.name: 0, parts[1].spec.name: border}, exact=exact)
        own = [step.at(alpha)]
        made = (each for first, last in weight.cuts() for each in weight.compute(first, last, own, space))
        same = True
        for at, data in (place for places, _, _ in made for place in places):
            ref, begin = (theirs[0], at) if at < border else (theirs[1], at - border)
            same = same and inputs.read(ref.path, ref.offset + begin, len(data)) == data
    if not same:
        found.append(step.base.spec.name)
