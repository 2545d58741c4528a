"""`sum` and `truncate`: adapters of adapters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from adaptertool.adapter_reports import AdapterReport
from adaptertool.cli.boundary import ignore_signals, say
from adaptertool.cli.options import DEBUG, JSON, QUIET, THREADS, bar, with_options
from adaptertool.render.machine import to_json
from adaptertool.tasks.sum import METHODS

RANK = click.option("--rank", type=click.IntRange(min=1), help="At most this rank.")
ENERGY = click.option("--energy", help="The smallest rank that keeps this share of the squared spectrum, such as 0.99.")
makes_adapter = with_options(
    click.option("-o", "--out", required=True, type=click.Path(), help="Where to write."),
    click.option("--force", is_flag=True, help="Replace an OUT that adaptertool made."),
    click.option("--dry-run", is_flag=True, help="Compute the report and write nothing."),
    THREADS,
    JSON,
    QUIET,
    click.option("-v", "--verbose", is_flag=True, help="Every layer on a line of its own."),
    DEBUG,
)


@click.command("sum")
@click.argument("adapters", nargs=-1, required=True, type=click.Path(), metavar="ADAPTER...")
@click.option("-w", "--weight", "weights", multiple=True, help="Weight of an adapter; by order, one for each.")
@click.option("--method", type=click.Choice(METHODS), default=METHODS[0], help="Concatenation.")
@with_options(RANK, ENERGY)
@makes_adapter
def sum_command(adapters: tuple[str, ...], weights: tuple[str, ...], verbose: bool, **options: Any) -> None:
    """Add ADAPTERs into one: Σ w·(alpha/r)·B·A, exact by concatenation; no base is needed.

    A negative weight subtracts. The rank of a layer is the sum of its ranks; --rank or --energy cut it down after that,
    by the factored SVD.
    """
    from adaptertool.render.adapters import sum_text  # noqa: PLC0415
    from adaptertool.tasks.sum import sum_adapters  # noqa: PLC0415

    _run(sum_adapters, sum_text, adapters, weights=weights or None, verbose=verbose, **options)


@click.command()
@click.argument("adapter", type=click.Path())
@with_options(
    RANK,
    ENERGY,
    click.option("--max-error", help="The smallest rank with at most this error, relative in Frobenius norm."),
    click.option("--balance", is_flag=True, help="Share the singular values between A and B."),
)
@makes_adapter
def truncate(adapter: str, verbose: bool, **options: Any) -> None:
    """Reduce the rank of ADAPTER: of each layer the best approximation of B·A, by QR and a small SVD.

    One of --rank, --energy and --max-error is needed. Layers that lose nothing keep their bytes.
    """
    from adaptertool.render.adapters import truncate_text  # noqa: PLC0415
    from adaptertool.tasks import truncate as task  # noqa: PLC0415

    _run(task.truncate, truncate_text, adapter, verbose=verbose, **options)


def _run(
    task: Callable[..., AdapterReport],
    text: Callable[..., str],
    source: Any,
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    out: str,
    **options: Any,
) -> None:
    with bar(task.__name__, None, quiet=quiet) as progress:
        report = task(source, out, progress=progress, before_publish=ignore_signals, **options)
    for note in () if quiet else report.notes:
        say(f"adaptertool: note: {note}", sys.stderr)
    if not quiet or as_json:
        say(to_json(report) if as_json else text(report, every_layer=verbose), sys.stdout)
