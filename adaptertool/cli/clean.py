"""`clean`."""

from __future__ import annotations

import sys

import click

from adaptertool.cli.boundary import say
from adaptertool.cli.options import DEBUG
from adaptertool.tasks import clean as task


@click.command()
@click.argument("out")
@DEBUG
def clean(out: str) -> None:
    """Remove what killed or failed runs have left beside OUT. OUT itself is not touched."""

    removed = task.clean(out)
    say("\n".join(f"removed {folder}" for folder in removed) or f"nothing was left beside {out}", sys.stdout)
