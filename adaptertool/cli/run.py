"""A plan of `merge` or `wise` is run, and its report printed. Loaded only then: a dry run needs no engine."""

from __future__ import annotations

import dataclasses

from adaptertool.arguments import as_path
from adaptertool.cli import pages
from adaptertool.cli.bar import bar
from adaptertool.cli.options import Printing
from adaptertool.cli.within import put
from adaptertool.engine.budget import bytes_to_write
from adaptertool.output.checkpoint import run
from adaptertool.output.options import Options
from adaptertool.output.preview import tensors_of
from adaptertool.render.run import run_text
from adaptertool.spec.plan import Plan


def run_and_tell(plan: Plan, out: str, options: Options, printing: Printing) -> None:
    """Raises AdapterToolError. `options.note` says a thing once, on stderr."""
    pages.require(printing.html)
    with bar(plan.command, bytes_to_write(plan), quiet=printing.quiet) as progress:
        done = run(plan, as_path(out, "OUT"), dataclasses.replace(options, progress=progress))
    pages.save(printing.html, "run", done, [done.base, *done.sources], lambda: tensors_of(plan))
    for text in done.notes:
        options.tell_note(text)
    put(done, lambda: run_text(done), as_json=printing.as_json, quiet=printing.quiet)
