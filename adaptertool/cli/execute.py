"""The way from a plan to what is printed: it is run, or what it would do is told."""

from __future__ import annotations

import dataclasses

from adaptertool.cli.options import Printing, say_notes
from adaptertool.cli.table import load
from adaptertool.cli.within import put, within
from adaptertool.engine.cost import Extra
from adaptertool.output.options import Options
from adaptertool.output.preview import sketched, tensors_of
from adaptertool.render.run import plan_text
from adaptertool.spec.plan import Plan


def execute(plan: Plan, out: str, options: Options, printing: Printing) -> None:
    """Run a plan, or tell what it would do, and print the report."""
    said: list[str] = []

    def note(text: str) -> None:
        if text not in said:
            said.append(text)
            say_notes([text], quiet=printing.quiet)

    for text in plan.notes:
        note(text)
    if options.dry_run:
        _tell_plan(plan, out, options, printing)
    else:
        run_and_tell = load("run", "run_and_tell")
        run_and_tell(plan, out, dataclasses.replace(options, note=note), printing)


def _tell_plan(plan: Plan, out: str, options: Options, printing: Printing) -> None:
    """What a run would do. The record of each tensor is made only where it is shown: in JSON, and in a recipe's own."""
    report, sketches = sketched(
        plan,
        out,
        force=options.force,
        threads=options.threads,
        rate=options.rate,
        nodes=options.nodes,
        extra=Extra(sha256=options.sha256 or options.provenance is not None, verify=options.verify),
    )
    if around := within():
        around.plans.append(plan)
    if around or printing.as_json:
        report = dataclasses.replace(report, tensors=tensors_of(plan))
    put(
        report,
        lambda: plan_text(report, sketches(), every_tensor=printing.verbose),
        as_json=printing.as_json,
        quiet=False,
    )
