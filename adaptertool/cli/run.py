"""A plan of `merge` or `wise` is run, and its report printed. Loaded only then: a dry run needs no engine."""

from __future__ import annotations

import sys
from collections.abc import Callable

from adaptertool.arguments import as_path
from adaptertool.cli.bar import bar
from adaptertool.cli.boundary import ignore_signals, say
from adaptertool.engine.budget import bytes_to_write
from adaptertool.output.checkpoint import Options, run
from adaptertool.output.target import check_output
from adaptertool.render.machine import to_json
from adaptertool.render.run import run_text
from adaptertool.spec.plan import Plan


def run_and_tell(
    plan: Plan,
    note: Callable[[str], None],
    *,
    out: str,
    sha256: bool,
    provenance: str | None,
    force: bool,
    clean: bool,
    fail_if_unchanged: bool,
    verify: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """The options are those of the command. note: says a thing once, on stderr"""
    target = as_path(out, "OUT")
    check_output(plan, target, force=force, sha256=sha256)
    file = None if provenance is None else as_path(provenance, "FILE")

    with bar(plan.command, bytes_to_write(plan), quiet=quiet) as progress:
        options = Options(
            force=force,
            threads=threads,
            progress=progress,
            verify=verify,
            before_publish=ignore_signals,
            sha256=sha256,
            provenance=file,
            clean=clean,
            fail_if_unchanged=fail_if_unchanged,
            note=note,
        )
        done = run(plan, target, options)
    for text in done.notes:
        note(text)
    if not quiet or as_json:
        say(to_json(done) if as_json else run_text(done), sys.stdout)
