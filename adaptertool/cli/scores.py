"""The options of what is scored by a program: curves of `wise`, sweeps of `apply`."""

from __future__ import annotations

import click

from adaptertool.cli.options import with_options
from adaptertool.reports.scores import KEEP

SCORES = with_options(
    click.option("--score", metavar="'CMD {}'", help="Run CMD on each checkpoint; it prints a number, or JSON."),
    click.option(
        "--keep",
        type=click.Choice(KEEP),
        help="With --score: which (default: all with -o; of apply the best).",
    ),
    click.option("--target", metavar="NAME", help="The score to choose the best by; or mean (default: the first)."),
    click.option("--reference", metavar="NAME", help="The score to draw it against (default: the next)."),
    click.option("--minimise", is_flag=True, help="Lower scores are better."),
)
