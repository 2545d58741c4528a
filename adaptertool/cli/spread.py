"""`merge` and `wise` by the workers of a Dask cluster. Loaded only then."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from adaptertool.cli.bar import bar
from adaptertool.cli.boundary import say
from adaptertool.cli.options import Printing, say_notes
from adaptertool.errors import UsageError
from adaptertool.output.options import Options
from adaptertool.render.machine import to_json
from adaptertool.render.run import run_text
from adaptertool.tasks.call import call_of
from adaptertool.tasks.on_dask import on_dask
from adaptertool.tasks.spread import spread


def spread_and_tell(address: str, arguments: tuple[Any, ...], options: Options, printing: Printing) -> None:
    """arguments: those of `call_of`, but for the options. Raises AdapterToolError; UsageError for a dry run."""
    if options.dry_run:
        raise UsageError("--dry-run needs no cluster: leave out --dask")
    call = call_of(*arguments, options)
    with bar(call.command, None, quiet=printing.quiet) as progress:
        done = spread(call, dataclasses.replace(options, progress=progress), on_dask(address))
    say_notes(done.notes, quiet=printing.quiet)
    if not printing.quiet or printing.as_json:
        say(to_json(done) if printing.as_json else run_text(done), sys.stdout)
