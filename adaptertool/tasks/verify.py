"""`verify`: is a checkpoint what the merge, or the interpolation, of these inputs should give? Whatever made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from adaptertool.arguments import Number, PathLike, as_path
from adaptertool.errors import UsageError
from adaptertool.files.checkpoint import open_checkpoint
from adaptertool.planning.merge import plan_merge
from adaptertool.planning.tokenizer import BASE
from adaptertool.reports.verify import VerifyReport
from adaptertool.resolution.renaming import Renames, renaming
from adaptertool.spec.plan import Plan
from adaptertool.tasks.merge import prepare_merge
from adaptertool.tasks.wise import prepare_wise
from adaptertool.verification.check import check


def prepare_verify(
    base: PathLike,
    sources: Sequence[PathLike] = (),
    weights: Sequence[Number] | None = None,
    *,
    alpha: Number | None = None,
    compose: str = "sequential",
    renames: Sequence[str] | Renames = (),
    leave_out: Sequence[str] = (),
    expert_layout: str | None = None,
) -> Plan:
    """The plan of what a checkpoint should be. The arguments are those of `verify`."""
    way: dict[str, Any] = {"renames": renames, "leave_out": leave_out, "expert_layout": expert_layout}
    way |= {"tokenizer": BASE}
    if alpha is not None:
        if len(sources) != 1 or weights:
            raise UsageError("with an alpha there is one adapter, or one tuned checkpoint, and no weight")
        return prepare_wise(base, sources[0], [alpha], **way)
    if not sources:
        return plan_merge(open_checkpoint(as_path(base, "BASE")), [], [])
    return prepare_merge(base, sources, weights, compose=compose, **way)


def verify(
    merged: PathLike,
    base: PathLike,
    sources: Sequence[PathLike] = (),
    *,
    weights: Sequence[Number] | None = None,
    alpha: Number | None = None,
    compose: str = "sequential",
    renames: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    expert_layout: str | None = None,
    strict: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Judge every tensor of the checkpoint `merged`, made by any tool, against the exact merge. One pass, streaming.

    base, sources, weights, compose, leave_out, expert_layout: what it should have been made of, as for `merge`
    renames: on the names of sources and of `merged`; each must change a name of one of them
    alpha:  where it should be an interpolation, as by `wise`: of an adapter or of a tuned checkpoint
    strict: what rounding explains counts as wrong too

    A tensor is "exact" (the bits of the exact merge), "rounding" (what an honest recipe explains:
    verification.examine), "wrong", "untouched_changed", "missing" or "extra". Of what is wrong the fault is named:
    not-applied, applied-twice, wrong-scale (with the fitted scale), rslora-ignored, alpha-pattern-ignored, transposed,
    magnitude-ignored, negated, wrong-base, row-shifted (other rows', or another tensor's data), truncated, stochastic,
    lower-precision, nan, overflow, dtype-changed, shape-changed, unknown. `problems` has what is wrong beside single
    tensors: fields of config.json, and a scale that shows in all tensors together only.

    Raises InputError where something cannot be read, or the merge itself is refused.
    """
    with renaming(renames) as own:
        way: dict[str, Any] = {"renames": own, "leave_out": leave_out, "expert_layout": expert_layout}
        plan = prepare_verify(base, sources, weights, alpha=alpha, compose=compose, **way)
        opened = open_checkpoint(as_path(base, "BASE"))
        candidate = own.checkpoint(open_checkpoint(as_path(merged, "MERGED")), opened)
    report = check(plan, opened, candidate, strict=strict, threads=threads, progress=progress)
    return dataclasses.replace(report, sources=tuple(map(str, plan.sources)))
