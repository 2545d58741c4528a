"""`verify`: is a checkpoint what the merge, or the interpolation, of these inputs should give? Whatever made it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertool.correspondence import aligned, ties_in, with_tied
from adaptertool.errors import UsageError
from adaptertool.files.checkpoint import Checkpoint, open_checkpoint
from adaptertool.files.jsonfile import load_json
from adaptertool.formats.peft import CONFIG, is_adapter
from adaptertool.formats.peft_config import LoraConfig, parse_config
from adaptertool.plan import all_steps, plan_merge
from adaptertool.renaming import Renames, renaming
from adaptertool.reports.verify import VerdictCounts, VerifyReport
from adaptertool.resolve import open_subject
from adaptertool.spec.plan import Edit, Plan
from adaptertool.tasks.arguments import Number, PathLike, as_path
from adaptertool.tasks.common import thread_count
from adaptertool.tasks.merge import prepare_merge
from adaptertool.tasks.tokenizer import BASE
from adaptertool.tasks.wise import prepare_wise

STATUSES = ("exact", "rounding", "wrong", "untouched_changed", "missing", "extra")


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

    A tensor is "exact" (the bits of the exact merge), "rounding" (what an honest recipe explains: verdict.examine),
    "wrong", "untouched_changed", "missing" or "extra". Of what is wrong the fault is named: not-applied, applied-twice,
    wrong-scale (with the fitted scale), rslora-ignored, alpha-pattern-ignored, transposed, magnitude-ignored, negated,
    wrong-base, row-shifted (other rows', or another tensor's data), truncated, stochastic, lower-precision, nan,
    overflow, dtype-changed, shape-changed, unknown. `problems` has what is wrong beside single tensors: fields of
    config.json, and a scale that shows in all tensors together only.

    Raises InputError where something cannot be read, or the merge itself is refused.
    """
    with renaming(renames) as own:
        way: dict[str, Any] = {"renames": own, "leave_out": leave_out, "expert_layout": expert_layout}
        plan = prepare_verify(base, sources, weights, alpha=alpha, compose=compose, **way)
        opened = open_checkpoint(as_path(base, "BASE"))
        candidate = own.checkpoint(open_checkpoint(as_path(merged, "MERGED")), opened)
    report = check(plan, opened, candidate, strict=strict, threads=threads, progress=progress)
    return dataclasses.replace(report, sources=tuple(map(str, plan.sources)))


def check(
    plan: Plan,
    base: Checkpoint,
    candidate: Checkpoint,
    *,
    strict: bool,
    threads: int | None,
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Judge `candidate` against what `plan`, which has one output, makes of `base`."""
    from adaptertool.files.reader import Inputs  # noqa: PLC0415
    from adaptertool.preflight import require_equal, require_finite_factors  # noqa: PLC0415  # loads numpy
    from adaptertool.verdict.pairs import hints, notes_of, odd_ones, pair, problems_of  # noqa: PLC0415
    from adaptertool.verdict.run import judge, most_frequent  # noqa: PLC0415

    start, ends = time.perf_counter(), open_subject(base).ends
    candidate, tied, found = _corresponding(plan, base, candidate)
    stamps = {**plan.inputs, **{header.path: header.stamp for header in candidate.headers}}
    (output,) = plan.outputs
    with Inputs(stamps) as inputs:
        require_finite_factors(plan, inputs)
        require_equal(plan, inputs)
        pairs = pair(plan, output.alpha, {**tied, **ends}, candidate, inputs)
        names = list(map(str, plan.sources))
        odd, told = odd_ones(pairs.subjects, candidate), progress or (lambda _: None)
        verdicts, pooled = judge(pairs, odd, _readings(plan), names, thread_count(threads), told)
        inputs.check_unchanged()
    counts = {status: sum(verdict.status == status for verdict in verdicts) for status in STATUSES}
    problems = (*problems_of(plan, base, ends, candidate), *pooled, *hints(verdicts, base, candidate))
    right = counts["exact"] + (0 if strict else counts["rounding"])
    if strict:
        right -= sum(verdict.status == "exact" and verdict.diagnosis is not None for verdict in verdicts)
    return VerifyReport(
        ok=right == len(verdicts) and not problems,
        merged=str(candidate.path),
        base=str(plan.base),
        sources=tuple(map(str, plan.sources)),
        weights=plan.weights,
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
    steps = {step.spec.name: step for step in all_steps(plan)}
    candidate, notes = aligned(steps, base.config, candidate)
    candidate, _ = with_tied({name: step.base for name, step in steps.items()}, base.config, candidate)
    more = [name for name in candidate.tensors if name not in steps]
    ties = ties_in((*steps, *more), base.config, unsaid=True) if more else {}
    return candidate, {end: source for end, source in ties.items() if end in more and source in steps}, notes


def _readings(plan: Plan) -> Mapping[str, Callable[[Edit], Edit]]:
    """Other ways to read the configs of the adapters, which some tools take."""
    configs = [_config(path) for path in plan.sources]
    readings = {}
    if any(config is not None and config.rank_stabilised for config in configs):
        readings["rslora-ignored"] = _scaled_as(configs, rank_stabilised=False)
    if any(config is not None and config.alpha_pattern for config in configs):
        readings["alpha-pattern-ignored"] = _scaled_as(configs, alpha_pattern={})
    return readings


def _config(path: Path) -> LoraConfig | None:
    return parse_config(path / CONFIG, load_json(path / CONFIG)) if is_adapter(path) else None


def _scaled_as(configs: Sequence[LoraConfig | None], **other: object) -> Callable[[Edit], Edit]:
    def read(edit: Edit) -> Edit:
        config = configs[edit.adapter]
        if config is None or edit.kind == "full":
            return edit
        own = config.scale_of(edit.module)
        otherwise = dataclasses.replace(config, **other).scale_of(edit.module)  # type: ignore[arg-type]
        return edit._replace(scale=edit.scale * otherwise / own) if own else edit

    return read
