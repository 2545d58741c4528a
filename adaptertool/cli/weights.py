"""The options of weights that differ between tensors, and of which tensors are edited."""

from __future__ import annotations

from collections.abc import Callable

import click

from adaptertool.cli.options import Command, one_by_one


def _no_lists(context: click.Context, option: click.Parameter, weights: tuple[str, ...]) -> tuple[str, ...]:
    """Raises UsageError for several weights in one, but of tensors that a pattern names."""
    one_by_one(context, option, tuple(text for text in weights if "=" not in text))
    return weights


def weight_option(said: str) -> Callable[[Command], Command]:
    """-w, of what is said."""
    names = "-w", "--weight", "weights"
    metavar = "NUMBER|PATTERN=NUMBERS"
    return click.option(*names, multiple=True, callback=_no_lists, metavar=metavar, help=said)


WEIGHT = weight_option(
    "Weight of an adapter; by order, one for each. Of tensors that fit: 'layers.0-15.mlp=0.5,1'. Over layers: 0:0.5:1."
)
ONLY = click.option("--only", multiple=True, metavar="PATTERN", help="Edit only tensors of BASE that fit: layers.0-15.")
EXCLUDE = click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Do not edit tensors of BASE that fit: '*norm'."
)
