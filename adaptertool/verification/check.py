"""Judges a whole checkpoint, tensor by tensor, against what a plan makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from adaptertool.engine.preflight import require_equal, require_finite_factors
from adaptertool.engine.resources import thread_count
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.hub import called
from adaptertool.files.reader import Inputs
from adaptertool.reports.verify import VerdictCounts, VerifyReport
from adaptertool.resolution.correspondence import aligned, ties_in, with_tied
from adaptertool.resolution.resolve import Base
from adaptertool.spec.plan import Plan
from adaptertool.verification.hypotheses import Reading
from adaptertool.verification.pairing import hints, notes_of, odd_ones, pair, problems_of
from adaptertool.verification.run import judge, most_frequent

STATUSES = ("exact", "rounding", "wrong", "untouched_changed", "missing", "extra")


def check(
    plan: Plan,
    subject: Base,
    candidate: Checkpoint,
    readings: Mapping[str, Reading],
    *,
    strict: bool,
    threads: int | None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Judge `candidate` against what `plan`, which has one output, makes of the base.

    readings: other ways to read the adapters of the plan, which some tools take (formats.misreadings)
    """
    start, base, ends = time.perf_counter(), subject.base, subject.ends
    candidate, tied, found = _corresponding(plan, base, candidate)
    stamps = {**plan.inputs, **{header.path: header.stamp for header in candidate.headers}}
    (output,) = plan.outputs
    with Inputs(stamps) as inputs:
        require_finite_factors(plan, inputs)
        require_equal(plan, inputs)
        pairs = pair(plan, output.alpha, {**tied, **ends}, candidate, inputs)
        names = list(map(called, plan.sources))
        odd, told = odd_ones(pairs.subjects, candidate), progress or (lambda _: None)
        verdicts, pooled = judge(pairs, odd, readings, names, thread_count(threads), told)
        inputs.check_unchanged()
    counts = {status: sum(verdict.status == status for verdict in verdicts) for status in STATUSES}
    problems = (*problems_of(plan, base, ends, candidate), *pooled, *hints(verdicts, plan, base, candidate))
    right = counts["exact"] + (0 if strict else counts["rounding"])
    if strict:
        right -= sum(verdict.status == "exact" and verdict.diagnosis is not None for verdict in verdicts)
    good = right == len(verdicts) and not problems
    return VerifyReport(
        ok=good,
        verdict="right" if good else "wrong",
        merged=called(candidate.path),
        base=called(plan.base),
        sources=tuple(map(called, plan.sources)),
        weights=plan.weights,
        weight_rules=plan.weight_rules,
        alpha=output.alpha,
        strict=strict,
        summary=VerdictCounts(**counts, diagnosis=most_frequent(verdicts, pooled)),
        tensors=tuple(verdicts),
        problems=problems,
        notes=tuple(dict.fromkeys((*plan.notes, *found, *notes_of(candidate, pairs, odd)))),
        bytes_read=sum(header.size for header in (*base.headers, *candidate.headers)),
        seconds=time.perf_counter() - start,
    )


def _corresponding(
    plan: Plan, base: Checkpoint, candidate: Checkpoint
) -> tuple[Checkpoint, Mapping[str, str], list[str]]:
    """The candidate with the names of the plan; the ends that the plan leaves out since they are tied; and a note."""
    steps = {step.spec.name: step for step in plan.steps()}
    candidate, notes = aligned(steps, base.config, candidate)
    candidate, _ = with_tied({name: step.base for name, step in steps.items()}, base.config, candidate)
    more = [name for name in candidate.tensors if name not in steps]
    ties = ties_in((*steps, *more), base.config, unsaid=True) if more else {}
    return candidate, {end: source for end, source in ties.items() if end in more and source in steps}, notes
