"""What a plan would do, as a report: `--dry-run`. Needs no torch and reads no weights."""

from __future__ import annotations

import os
from pathlib import Path

from adaptertool.errors import UsageError
from adaptertool.files.publish import check_target, free_space
from adaptertool.plan import bytes_to_read, bytes_to_write, predicted_memory
from adaptertool.reports import EditReport, PlanReport, TensorPlan
from adaptertool.spec import Plan, Step


def preview(plan: Plan, out: Path, *, force: bool, threads: int) -> PlanReport:
    """The report of a plan. An OUT that the run would refuse is refused here too."""
    check_output(plan, out, force=force)
    edited, written = count_edited(plan), bytes_to_write(plan)
    tensors = tuple(_tensor(shard.name, step) for shard in plan.shards for step in shard.steps)
    return PlanReport(
        schema="plan/1",
        command=plan.command,
        base=str(plan.base),
        sources=tuple(map(str, plan.sources)),
        weights=plan.weights,
        alphas=tuple(output.alpha for output in plan.outputs),
        out=str(out),
        outputs=output_paths(plan, out),
        tensors_edited=edited,
        tensors_copied=len(tensors) - edited,
        bytes_to_read=bytes_to_read(plan),
        bytes_to_write=written,
        disk_needed=written,
        disk_free=free_space(out),
        threads=threads,
        memory_predicted=predicted_memory(plan, threads),
        notes=plan.notes,
        tensors=tensors,
    )


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def makes_file(plan: Plan, out: Path) -> bool:
    """A base that is one file makes one file, where OUT is named like one."""
    return plan.single_file and len(plan.outputs) == 1 and out.suffix == ".safetensors"


def check_output(plan: Plan, out: Path, *, force: bool) -> None:
    """Refuse an OUT that the run would have to refuse, before anything is read or computed."""
    as_file = makes_file(plan, out)
    check_target(out, (plan.base, *plan.sources), as_file=as_file, force=force)
    if out.suffix == ".safetensors" and not as_file:
        raise UsageError(f"OUT {out} is named like a file, but this run makes a directory")


def output_paths(plan: Plan, out: Path) -> tuple[str, ...]:
    return tuple(str(out / output.folder) for output in plan.outputs)


def count_edited(plan: Plan) -> int:
    return sum(bool(step.edits) for shard in plan.shards for step in shard.steps)


def _tensor(shard: str, step: Step) -> TensorPlan:
    spec = step.base.spec
    return TensorPlan(
        name=spec.name,
        shard=shard,
        dtype=spec.dtype,
        shape=spec.shape,
        action="edit" if step.edits else "copy",
        bytes=spec.nbytes,
        edits=tuple(EditReport(edit.kind, edit.adapter, edit.module, edit.scale, edit.weight) for edit in step.edits),
    )
