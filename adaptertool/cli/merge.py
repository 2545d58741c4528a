"""`merge`."""

from __future__ import annotations

from typing import Any

import click

from adaptertool.arguments import given_settings
from adaptertool.cli.execute import execute
from adaptertool.cli.options import (
    AS_TRAINED,
    DASK,
    DTYPE,
    LEAVE_OUT,
    QUANTISE,
    SHARD_SIZE,
    TOKENIZER,
    records,
    with_options,
    writes,
)
from adaptertool.cli.settings import method_option, setting_options
from adaptertool.cli.table import load
from adaptertool.cli.weights import EXCLUDE, ONLY, WEIGHT
from adaptertool.methods import METHOD_BY_NAME, settings_of
from adaptertool.planning.sources import COMPOSITIONS, Reading
from adaptertool.tasks.merge import MergeRecipe, prepare

SETTINGS = settings_of()


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """The settings of methods, taken out of the options; None where not given."""
    found = {name: options.pop(name) for name in SETTINGS}
    return {name: None if value == () else value for name, value in found.items()}


@click.command()
@click.argument("base", type=click.Path())
@click.argument("adapters", nargs=-1, required=True, type=click.Path(), metavar="ADAPTER...")
@WEIGHT
@click.option(
    "--compose",
    type=click.Choice(COMPOSITIONS),
    default="sequential",
    help="Several adapters one after the other, or together as at inference (differs for DoRA).",
)
@method_option(
    sorted(METHOD_BY_NAME), "Combine the changes in another way; ADAPTERs may then be tuned checkpoints too:"
)
@with_options(*setting_options(SETTINGS))
@ONLY
@EXCLUDE
@LEAVE_OUT
@TOKENIZER
@DTYPE
@QUANTISE
@AS_TRAINED
@SHARD_SIZE
@click.option("-o", "--out", required=True, type=click.Path(), help="Where to write.")
@DASK
@writes
def merge(
    base: str,
    adapters: tuple[str, ...],
    weights: tuple[str, ...],
    compose: str,
    method: str | None,
    only: tuple[str, ...],
    exclude: tuple[str, ...],
    leave_out: tuple[str, ...],
    tokenizer: str | None,
    dtype: str | None,
    quantise: str | None,
    as_trained: str | None,
    max_shard_size: str | None,
    renames: tuple[str, ...],
    expert_layout: str | None,
    precision: str,
    out: str,
    dask: str | None,
    **options: Any,
) -> None:
    """Merge ADAPTERs into BASE: W + w·(alpha/r)·B·A, in order, rounded once.

    Saved modules and biases replace the base's (with a weight w: W + w·(T - W)).
    """
    given = given_settings("merge", SETTINGS, given_options(options))
    recipe = MergeRecipe(compose, precision, method, given, tokenizer, dtype, max_shard_size, quantise, as_trained)
    reading, (how, printing) = Reading(renames, leave_out, expert_layout, only, exclude), records(options)
    if dask is not None:
        arguments = "merge", base, adapters, weights or None, recipe, reading, out
        load("spread", "spread_and_tell")(dask, arguments, how, printing)
    else:
        execute(prepare(base, adapters, weights or None, recipe, reading).plan, out, how, printing)
