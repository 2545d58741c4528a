"""`inspect`."""

from __future__ import annotations

from typing import Any

import click

from adaptertool.cli import pages
from adaptertool.cli.bar import bar
from adaptertool.cli.options import (
    DEBUG,
    EXPERT_LAYOUT,
    HTML,
    JSON,
    QUIET,
    RENAME,
    THREADS,
    failed,
    tell,
    with_options,
)
from adaptertool.cli.terminal import room
from adaptertool.render.inspect import inspect_text
from adaptertool.tasks import inspect as task


@click.command()
@click.argument("path", type=click.Path())
@with_options(
    click.option("--base", type=click.Path(), help="Does it fit there? And its changes against these weights."),
    click.option("--tokens", type=float, metavar="N", help="Tokens of the training data; with --nats-per-token."),
    click.option("--nats-per-token", type=float, metavar="X", help="Their mean log loss in the first epoch."),
    click.option("--episodes", type=float, metavar="N", help="Of reinforcement learning, 1 bit each."),
    click.option("--spectra/--no-spectra", default=True, help="Read the factors, and with --base its weights."),
    HTML,
    RENAME,
    EXPERT_LAYOUT,
    THREADS,
    JSON,
    QUIET,
    click.option("-v", "--verbose", is_flag=True, help="Every module on a line of its own."),
    DEBUG,
)
def inspect(
    path: str, base: str | None, html: str | None, as_json: bool, quiet: bool, verbose: bool, **options: Any
) -> int:
    """Describe an adapter or a checkpoint: what it holds, covers and can hold, and its spectra.

    What a merge refuses is described too. With --base, exit code 1 where it does not fit.
    """
    pages.require(html)
    with bar("inspect", None, quiet=quiet) as progress:
        report = task.inspect(path, base, progress=progress, **options)
    pages.save(html, "inspect", report, [path, base])
    tell(report, lambda: inspect_text(report, every_module=verbose, width=room()), as_json=as_json, quiet=quiet)
    if report.fits is not False:
        return 0
    reason, *listed = (report.refusal or "").splitlines() or [""]
    said = f"{reason.removesuffix(':')}; without -q they are listed" if listed else reason
    return failed(f"inspect {report.path}: does not fit {report.base}: {said}", quiet=quiet)
