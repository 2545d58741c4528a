"""`merge`."""

from __future__ import annotations

from typing import Any

import click

from adaptertool.cli.options import (
    AS_TRAINED,
    DTYPE,
    LEAVE_OUT,
    QUANTISE,
    SHARD_SIZE,
    TOKENIZER,
    WEIGHT,
    execute,
    records,
    setting_options,
    with_options,
    writes,
)
from adaptertool.methods import METHOD_BY_NAME, settings_of
from adaptertool.planning.sources import COMPOSITIONS
from adaptertool.tasks.merge import prepare_merge

SETTINGS = settings_of()


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
@click.option(
    "--method",
    type=click.Choice(sorted(METHOD_BY_NAME)),
    help="Combine the changes in another way; ADAPTERs may then be tuned checkpoints too.",
)
@with_options(*setting_options(SETTINGS))
@LEAVE_OUT
@TOKENIZER
@DTYPE
@QUANTISE
@AS_TRAINED
@SHARD_SIZE
@click.option("-o", "--out", required=True, type=click.Path(), help="Where to write.")
@writes
def merge(
    base: str,
    adapters: tuple[str, ...],
    weights: tuple[str, ...],
    compose: str,
    method: str | None,
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
    **options: Any,
) -> None:
    """Merge ADAPTERs into BASE: W + w·(alpha/r)·B·A, in order, rounded once.

    Saved modules and biases replace the base's (with a weight w: W + w·(T - W)).
    """
    plan = prepare_merge(
        base,
        adapters,
        weights or None,
        compose=compose,
        renames=renames,
        expert_layout=expert_layout,
        precision=precision,
        method=method,
        leave_out=leave_out,
        tokenizer=tokenizer,
        dtype=dtype,
        quantise=quantise,
        as_trained=as_trained,
        max_shard_size=max_shard_size,
        **{name: options.pop(name) for name in SETTINGS},
    )
    execute(plan, out, *records(options))
