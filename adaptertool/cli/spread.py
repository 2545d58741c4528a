"""`merge` and `wise` by the workers of a Dask cluster. Loaded only then."""

from __future__ import annotations

import dataclasses
from typing import Any

from adaptertool.cli import pages
from adaptertool.cli.bar import bar
from adaptertool.cli.options import Printing, tell
from adaptertool.errors import UsageError
from adaptertool.output.options import Options
from adaptertool.render.run import run_text
from adaptertool.tasks.call import call_of
from adaptertool.tasks.on_dask import on_dask
from adaptertool.tasks.spread import spread


def spread_and_tell(address: str, arguments: tuple[Any, ...], options: Options, printing: Printing) -> None:
    """arguments: those of `call_of`, but for the options. Raises AdapterToolError; UsageError for a dry run."""
    if options.dry_run:
        raise UsageError("--dry-run needs no cluster: leave out --dask")
    pages.require(printing.html)
    call = call_of(*(*arguments, options))
    with bar(call.command, None, quiet=printing.quiet) as progress:
        done = spread(call, dataclasses.replace(options, progress=progress), on_dask(address))
    pages.save(printing.html, "run", done, [done.base, *done.sources])
    tell(done, lambda: run_text(done), as_json=printing.as_json, quiet=printing.quiet)
