"""From a plan to a published OUT: the part that all commands that write checkpoints share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from adaptertool.budget import bytes_to_write
from adaptertool.engine import run_plan
from adaptertool.errors import StorageError, UsageError, shown
from adaptertool.files import publish
from adaptertool.files.checkpoint import open_checkpoint
from adaptertool.files.reader import Inputs
from adaptertool.files.staging import Staging
from adaptertool.files.writer import forget, write_small
from adaptertool.numerics.compiled import FUNCTIONS
from adaptertool.preflight import require_equal, require_finite_factors
from adaptertool.reports import RunReport
from adaptertool.spec import EXACT, Plan
from adaptertool.tasks.common import check_output, makes_file, peak_memory, summary, thread_count
from adaptertool.tasks.manifest import recipe_key, write_manifests
from adaptertool.tasks.verify import check


def run(
    plan: Plan,
    out: Path,
    *,
    force: bool,
    threads: int | None,
    progress: Callable[[int], None] | None,
    verify: bool = False,
    before_publish: Callable[[], None] = lambda: None,
) -> RunReport:
    """Check, compute in a staging directory, publish. On any error OUT is as it was before.

    verify: read back what was written, from the disk, and judge it before it is published.
    before_publish: called when all is computed, just before OUT changes.
    """
    start = time.perf_counter()
    threads = thread_count(threads)
    require_verifiable(plan, verify=verify)
    check_output(plan, out, force=force)
    with Inputs(plan.inputs) as inputs:
        require_finite_factors(plan, inputs)
        require_equal(plan, inputs)
        with Staging(out, recipe_key(plan)) as stage:
            folder, written = stage.work, progress or (lambda _: None)
            publish.check_space(out, bytes_to_write(plan) - sum(file.size for file in stage.finished.values()))
            settled = run_plan(plan, stage, inputs, threads, written)
            for output in plan.outputs:
                for name, content in output.files:
                    write_small(folder / output.folder / name, content)
                    written(len(content))
            inputs.check_unchanged()
            work = folder / plan.shards[0].name if makes_file(plan, out) else folder
            if work == folder:
                write_manifests(plan, stage)
            publish.sync_tree(folder)
            if verify:
                verify_outputs(plan, folder, threads)
            before_publish()
            publish.publish(work, out, force=force)
    fields = summary(plan, out, threads)
    seconds = time.perf_counter() - start
    return RunReport(
        **fields,
        settled=settled.exactly,
        settled_one_by_one=settled.one_by_one,
        seconds=seconds,
        bytes_per_second=(fields["bytes_read"] + fields["bytes_written"]) / seconds,
        peak_memory=peak_memory(),
        compiled=bool(FUNCTIONS),
        verified=verify,
    )


def require_verifiable(plan: Plan, *, verify: bool) -> None:
    if verify and plan.as_adapter:
        raise UsageError("verifying is for checkpoints; an adapter is verified by what it makes of one")


def verify_outputs(plan: Plan, folder: Path, threads: int) -> None:
    """Raise StorageError unless each output holds what the plan makes. It is computed again for that."""
    base = open_checkpoint(plan.base)
    for output in plan.outputs:
        path = folder / output.folder
        written = open_checkpoint(path / plan.shards[0].name if plan.single_file else path)
        for header in written.headers:
            forget(header.path)
        alone = dataclasses.replace(plan, outputs=(output,))
        report = check(alone, base, written, strict=plan.precision == EXACT, threads=threads)
        if not report.ok:
            bad = next((tensor for tensor in report.tensors if tensor.status != "exact"), None)
            what = f"{shown(bad.name)} is {bad.status}" if bad else report.problems[0]
            raise StorageError(f"{path} was written, but is not what was computed: {what}; is the disk sound?")
