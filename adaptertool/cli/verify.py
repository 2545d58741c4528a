"""`verify`."""

from __future__ import annotations

from pathlib import Path

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
    failed,
    summarise,
    tell,
    with_options,
)
from adaptertool.cli.weights import EXCLUDE, ONLY, WEIGHT
from adaptertool.cli.within import put
from adaptertool.errors import UsageError, shown
from adaptertool.output.integrity import check_files
from adaptertool.planning.sources import COMPOSITIONS
from adaptertool.render.text import counted
from adaptertool.render.verify import files_text, require_junit, verify_text, write_junit
from adaptertool.reports.verify import VerifyReport
from adaptertool.tasks import verify as task


@click.command()
@click.argument("merged", type=click.Path())
@click.argument("base", required=False, type=click.Path())
@click.argument("sources", nargs=-1, type=click.Path(), metavar="[ADAPTER]...")
@WEIGHT
@click.option("--alpha", metavar="NUMBER", help="It is an interpolation (wise) towards ADAPTER, or a tuned checkpoint.")
@COMPOSE
@AS_TRAINED
@click.option("--strict", is_flag=True, help="What rounding explains is wrong too.")
@click.option("--junit", type=click.Path(), help="Write JUnit XML to this file, a test case for each tensor.")
@with_options(
    HTML,
    RENAME,
    ONLY,
    EXCLUDE,
    LEAVE_OUT,
    EXPERT_LAYOUT,
    THREADS,
    JSON,
    QUIET,
    click.option("-v", "--verbose", is_flag=True, help="List every tensor."),
    DEBUG,
)
def verify(
    merged: str,
    base: str | None,
    sources: tuple[str, ...],
    weights: tuple[str, ...],
    alpha: str | None,
    compose: str,
    as_trained: str | None,
    strict: bool,
    junit: str | None,
    html: str | None,
    renames: tuple[str, ...],
    only: tuple[str, ...],
    exclude: tuple[str, ...],
    leave_out: tuple[str, ...],
    expert_layout: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Judge every tensor of MERGED, made by any tool, against the exact merge of ADAPTERs into BASE.

    Exit code 0: right (bit for bit, or within what rounding explains), 1: not, 3: unreadable. Names what is wrong:
    not-applied, applied-twice, wrong-scale, rslora-ignored, transposed, wrong-base, ...

    Without BASE: whether the files of MERGED are those that its manifest was written for.
    \f
    Raises UsageError with other options but no BASE.
    """
    if base is None:
        given = (*weights, *renames, *only, *exclude, *leave_out, alpha, junit, html, expert_layout, as_trained)
        if strict or compose != COMPOSITIONS[0] or any(one is not None for one in given):
            raise UsageError("without a BASE only the files are checked against their manifest; give the BASE too")
        return _files(merged, threads, as_json=as_json, quiet=quiet)
    pages.require(html)
    if junit is not None:
        require_junit(junit)
    with bar("verify", None, quiet=quiet) as progress:
        report = task.verify(
            merged,
            base,
            sources,
            weights=weights or None,
            alpha=alpha,
            compose=compose,
            renames=renames,
            only=only,
            exclude=exclude,
            leave_out=leave_out,
            expert_layout=expert_layout,
            as_trained=as_trained,
            strict=strict,
            threads=threads,
            progress=progress,
        )
    pages.save(html, "verify", report, [merged, base, *sources])
    if junit is not None:
        write_junit(report, Path(junit))
    tell(report, lambda: verify_text(report, every_tensor=verbose), as_json=as_json, quiet=quiet)
    return 0 if report.ok else failed(_wrong(report), quiet=quiet)


def _wrong(report: VerifyReport) -> str:
    good = report.summary.exact + (0 if report.strict else report.summary.rounding)
    found = [*report.summary.diagnosis, *map(shown, report.problems)]
    count = counted(len(report.tensors) - good, "tensor")
    return f"verify {report.merged}: WRONG: {count} ({'; '.join(found) or 'see -v'})"


def _files(out: str, threads: int | None, *, as_json: bool, quiet: bool) -> int:

    with bar("verify", None, quiet=quiet) as progress:
        report = check_files(out, progress, threads=threads)
    summarise(report)
    put(report, lambda: files_text(report), as_json=as_json, quiet=quiet)
    return 0 if report.ok else failed(files_text(report).splitlines()[0], quiet=quiet)
