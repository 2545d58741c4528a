"""`diff`."""

from __future__ import annotations

import click

from adaptertool.cli import pages
from adaptertool.cli.bar import bar
from adaptertool.cli.options import DEBUG, HTML, JSON, QUIET, THREADS, failed, tell, with_options
from adaptertool.render.diff import diff_text
from adaptertool.render.text import counted
from adaptertool.tasks import diff as task


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--ranks", is_flag=True, help="Also the stable and the effective rank of each change; takes longer.")
@with_options(
    click.option("--rename", "renames", multiple=True, metavar="REGEX=>NEW", help="Change names of B."),
    HTML,
    THREADS,
    JSON,
    QUIET,
    click.option("-v", "--verbose", is_flag=True, help="Every tensor that differs."),
    DEBUG,
)
def diff(
    a: str,
    b: str,
    ranks: bool,
    renames: tuple[str, ...],
    html: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Compare two checkpoints, or two adapters, tensor by tensor: which differ, and by how much.

    Exit code 0: all bits are equal, 1: not.
    """
    pages.require(html)
    with bar("diff", None, quiet=quiet) as progress:
        report = task.diff(a, b, ranks=ranks, renames=renames, threads=threads, progress=progress)
    pages.save(html, "diff", report, [a, b])
    tell(report, lambda: diff_text(report, every_tensor=verbose), as_json=as_json, quiet=quiet)
    if report.equal:
        return 0
    return failed(f"diff {report.a} {report.b}: DIFFERENT in {counted(len(report.tensors), 'tensor')}", quiet=quiet)
