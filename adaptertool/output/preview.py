"""What a plan would do, as a report: `--dry-run`. Reads no weights."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Sequence

from adaptertool.arguments import PathLike, as_path, parse_rate
from adaptertool.arithmetic.verbatim import only_cast
from adaptertool.engine.budget import bytes_to_write, predicted_memory
from adaptertool.engine.cost import NOTHING_MORE, Extra, cost_of
from adaptertool.engine.forms import Forms, forms_of
from adaptertool.engine.resources import thread_count
from adaptertool.files.publish import free_space
from adaptertool.output.target import check_output, summary
from adaptertool.reports.run import EditReport, PlanReport, TensorPlan, TensorSketch
from adaptertool.spec.plan import Edit, Plan, Step


def preview(
    plan: Plan,
    out: PathLike,
    *,
    force: bool = False,
    threads: int | None = None,
    rate: int | str | None = None,
    nodes: int = 1,
    extra: Extra = NOTHING_MORE,
) -> PlanReport:
    """The report of a plan. An OUT that the run would refuse is refused here too; nothing is written.

    rate: what each of so many nodes reads and writes in a second, such as "2GB/s": the report then has a cost
    extra: what the run is to do beside the merge, for the cost

    Raises UsageError for a rate that is none, or no node.

    >>> plan = adaptertool.prepare_merge("fixtures/base", ["fixtures/lora"])
    >>> adaptertool.preview(plan, "merged").bytes_written
    1039279
    """
    report, _ = sketched(plan, out, force=force, threads=threads, rate=rate, nodes=nodes, extra=extra)
    return dataclasses.replace(report, tensors=tensors_of(plan))


def sketched(
    plan: Plan,
    out: PathLike,
    *,
    force: bool = False,
    threads: int | None = None,
    rate: int | str | None = None,
    nodes: int = 1,
    extra: Extra = NOTHING_MORE,
) -> tuple[PlanReport, Callable[[], Sequence[TensorPlan | TensorSketch]]]:
    """The report of `preview` without its tensors, and what makes sketches of these: all that a text needs of them, in
    a third of the time. Raises what `preview` raises."""
    speed = parse_rate(rate)
    path, threads = as_path(out, "OUT"), thread_count(threads)
    check_output(plan, path, force=force)
    forms = forms_of(plan)
    report = PlanReport(
        **summary(plan, path, threads, forms),
        disk_needed=bytes_to_write(plan),
        disk_free=free_space(path),
        memory_predicted=predicted_memory(plan, threads, forms),
        tensors=(),
        cost=None if speed is None else cost_of(plan, speed, nodes, threads, extra),
    )
    return report, lambda: _sketches(plan, forms)


def _sketches(plan: Plan, forms: Forms) -> Sequence[TensorPlan | TensorSketch]:
    names = [step.spec.name for step in plan.steps()]
    if len({*names}) < len(names):  # several steps make one tensor
        return tensors_of(plan)
    plans = [_tensor("", [step]) for step in forms.firsts]
    forms_told = [(one.action, one.dtype, one.shape, one.bytes, one.edits) for one in plans]
    return [TensorSketch(name, *forms_told[number]) for name, number in zip(names, forms.numbers, strict=True)]


_NAME = operator.attrgetter("spec.name")


def tensors_of(plan: Plan) -> tuple[TensorPlan, ...]:
    """What becomes of each tensor."""
    return tuple(
        _tensor(shard.name, list(steps))
        for shard in plan.shards
        for _, steps in itertools.groupby(shard.steps, key=_NAME)
    )


def _weight(step: Step, edit: Edit) -> float:
    """What an edit counts in a tensor, or the share that it has of α there."""
    if step.blend is not None:
        sources = step.blend.sources
        return step.blend.weights[edit.adapter if sources is None else sources.index(edit.adapter)]
    return edit.weight if step.share is None else float(step.share)


def _tensor(shard: str, steps: Sequence[Step]) -> TensorPlan:
    """One tensor, which several steps make where its rows come from several places."""
    spec = steps[0].spec
    edits = [
        EditReport(
            kind=edit.kind,
            adapter=edit.adapter,
            module=edit.module,
            scale=edit.scale,
            weight=_weight(step, edit),
            rows=None if edit.view is None else len(edit.view.rows),
            transposed=edit.transposed,
        )
        for step in steps
        for edit in step.edits
    ]
    return TensorPlan(
        name=spec.name,
        shard=shard,
        dtype=spec.dtype,
        shape=spec.shape if len(steps) == 1 else (sum(step.spec.shape[0] for step in steps), *spec.shape[1:]),
        action="edit" if edits else "cast" if any(only_cast(step, 1) for step in steps) else "copy",
        bytes=spec.nbytes if len(steps) == 1 else sum(step.spec.nbytes for step in steps),
        edits=tuple(dict.fromkeys(edits) if len(edits) > 1 else edits),
    )
