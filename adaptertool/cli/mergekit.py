"""`mergekit` and `layers`."""

from __future__ import annotations

from typing import Any

import click

from adaptertool.cli.execute import execute
from adaptertool.cli.options import SHARD_SIZE, records, written
from adaptertool.cli.settings import OneOfRun
from adaptertool.errors import UsageError
from adaptertool.spec.plan import Plan
from adaptertool.tasks.mergekit import prepare_layers, prepare_mergekit

_OUT = click.option("-o", "--out", required=True, type=click.Path(), help="Where to write.")


@click.command()
@click.argument("config", type=click.Path())
@click.option("--seed", type=OneOfRun(min=0), default=0, metavar="N", help="Of what dare and della drop by chance.")
@SHARD_SIZE
@_OUT
@written
def mergekit(config: str, seed: int, max_shard_size: str | None, out: str, **options: Any) -> None:
    """Make what a configuration of mergekit, CONFIG, says: the same merge, streamed, with a manifest.

    Models are folders, names in the local cache of the hub, or MODEL+ADAPTER. OUT also has the configuration. What is
    not known, or not built, is refused with its line.
    """
    _make(prepare_mergekit(config, max_shard_size=max_shard_size, seed=seed), out, options)


@click.command()
@click.argument("base", type=click.Path())
@click.argument("layers")
@SHARD_SIZE
@_OUT
@written
def layers(base: str, layers: str, max_shard_size: str | None, out: str, **options: Any) -> None:
    """Write BASE with other layers: some left out, some more than once, in any order.

    LAYERS are numbers from 0 and ranges, ends included: 0-15,8-23. The files, their index and config.json follow; with
    --dry-run the map from old to new is told.
    """
    _make(prepare_layers(base, layers, max_shard_size=max_shard_size), out, options)


def _make(plan: Plan, out: str, flags: dict[str, Any]) -> None:
    how, printing = records(flags)
    if how.verify:
        raise UsageError(
            "--verify is for merges and interpolation; `adaptertool verify OUT` holds the files against the manifest"
        )
    execute(plan, out, how, printing)
