"""`drift`."""

from __future__ import annotations

from typing import Any

import click

from adaptertool.cli import pages
from adaptertool.cli.bar import bar
from adaptertool.cli.options import (
    AS_TRAINED,
    COMPOSE,
    DEBUG,
    EXPERT_LAYOUT,
    HTML,
    JSON,
    LEAVE_OUT,
    QUIET,
    RENAME,
    THREADS,
    Listed,
    failed,
    tell,
    with_options,
)
from adaptertool.cli.terminal import room
from adaptertool.cli.weights import EXCLUDE, ONLY, WEIGHT
from adaptertool.render.drift import drift_text, verdict
from adaptertool.reports.run import PATHS
from adaptertool.tasks import drift as task


@click.command()
@click.argument("base", type=click.Path())
@click.argument("adapters", nargs=-1, required=True, type=click.Path(), metavar="ADAPTER...")
@with_options(
    WEIGHT,
    COMPOSE,
    AS_TRAINED,
    click.option("--merged", type=click.Path(), metavar="DIR", help="Judge this, in the place of our own merge."),
    click.option(
        "--paths",
        type=Listed(),
        default=",".join(PATHS),
        metavar="A,B",
        help=f"Which to compare, of {', '.join(PATHS)}.",
    ),
    click.option(
        "--probe", type=int, default=task.PROBE, metavar="N", help=f"Gaussian inputs per layer (default {task.PROBE})."
    ),
    click.option("--activations", type=click.Path(), metavar="FILE", help="Real inputs: .safetensors, by module."),
    click.option("--fail-above", type=float, metavar="REL", help="Exit 1 where a module drifts by more."),
    click.option("--time", "cost", is_flag=True, help="Time the layers, merged and unmerged."),
    HTML,
    RENAME,
    ONLY,
    EXCLUDE,
    LEAVE_OUT,
    EXPERT_LAYOUT,
    THREADS,
    JSON,
    QUIET,
    click.option("-v", "--verbose", is_flag=True, help="Every module."),
    DEBUG,
)
def drift(
    base: str,
    adapters: tuple[str, ...],
    weights: tuple[str, ...],
    paths: str,
    html: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """How far merging ADAPTERS into BASE moves its outputs from those of the unmerged adapters.

    Measured from the weights alone, layer by layer: what rounding does to the stored weight and to the update,
    and what inputs become on each path. Exit 1 where the drift is more than rounding explains.
    """
    pages.require(html)
    with bar("drift", None, quiet=quiet) as progress:
        report = task.drift(
            base, adapters, weights=weights or None, paths=paths.split(","), progress=progress, **options
        )
    pages.save(html, "drift", report, [base, *adapters, report.merged])
    tell(report, lambda: drift_text(report, every_module=verbose, width=room()), as_json=as_json, quiet=quiet)
    if report.ok:
        return 0
    return failed(f"drift {report.base}: {verdict(report)}", quiet=quiet)
