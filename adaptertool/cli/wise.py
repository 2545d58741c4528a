"""`wise`."""

from __future__ import annotations

from typing import Any

import click

from adaptertool.cli.execute import execute
from adaptertool.cli.options import (
    AS_TRAINED,
    DASK,
    DTYPE,
    LEAVE_OUT,
    QUANTISE,
    SHARD_SIZE,
    TOKENIZER,
    Listed,
    records,
    writes,
)
from adaptertool.cli.scores import SCORES
from adaptertool.cli.table import load
from adaptertool.cli.weights import EXCLUDE, ONLY, weight_option
from adaptertool.errors import UsageError
from adaptertool.planning.sources import Reading
from adaptertool.tasks.wise import WiseRecipe, prepare


@click.command()
@click.argument("base", type=click.Path())
@click.argument("tuned", type=click.Path())
@click.option(
    "--alpha",
    type=Listed(),
    required=True,
    metavar="ALPHAS",
    help="A number, a list 0,0.3,1 or a sweep START:STOP:STEP.",
)
@click.option("--as-adapter", is_flag=True, help="Write an adapter that, merged into BASE, gives the same.")
@click.option(
    "--fisher",
    nargs=2,
    type=click.Path(),
    metavar="F0 F1",
    help="Weigh each element by these: checkpoints of Fisher information, of BASE and of TUNED.",
)
@weight_option("What alpha is multiplied by; of tensors that fit: 'layers.0-15.mlp=0.5'. Over layers: 0:0.5:1.")
@ONLY
@EXCLUDE
@LEAVE_OUT
@TOKENIZER
@DTYPE
@QUANTISE
@AS_TRAINED
@SHARD_SIZE
@SCORES
@click.option("-o", "--out", type=click.Path(), help="Where to write. With --score it may be left out.")
@DASK
@writes
def wise(
    base: str,
    tuned: str,
    alpha: str,
    fisher: tuple[str, str] | None,
    score: str | None,
    keep: str | None,
    target: str | None,
    reference: str | None,
    minimise: bool,
    out: str | None,
    renames: tuple[str, ...],
    expert_layout: str | None,
    precision: str,
    as_adapter: bool,
    weights: tuple[str, ...],
    only: tuple[str, ...],
    exclude: tuple[str, ...],
    leave_out: tuple[str, ...],
    tokenizer: str | None,
    dtype: str | None,
    quantise: str | None,
    as_trained: str | None,
    max_shard_size: str | None,
    dask: str | None,
    **options: Any,
) -> int:
    """Interpolate BASE towards TUNED: W + alpha·(T - W), for one alpha or many (Wise-FT).

    TUNED is an adapter or a fine-tuned checkpoint. Several alphas are written to OUT/alpha-0.300 and so on,
    with one read of the base. With --score the curve is measured: CMD is run (without a shell) with the path of each
    checkpoint in the place of {}, and prints a number, or a JSON object of named numbers. The same command goes on
    where it was interrupted, or where CMD failed.
    \f
    Raises UsageError where -o is missing, or options are given that are for --score only.
    """
    recipe = WiseRecipe(precision, as_adapter, fisher, tokenizer, dtype, max_shard_size, quantise, as_trained, weights)
    reading = Reading(renames, leave_out, expert_layout, only, exclude)
    how, printing = records(options)
    if score is None:
        if keep or target is not None or reference is not None or minimise:
            raise UsageError("--keep, --target, --reference and --minimise are for scores: give --score too")
        if out is None:
            raise UsageError("-o is missing: where to write (only with --score it may be left out)")
        if dask is not None:
            arguments = "wise", base, [tuned], alpha, recipe, reading, out
            load("spread", "spread_and_tell")(dask, arguments, how, printing)
            return 0
        execute(prepare(base, tuned, alpha, recipe, reading).plan, out, how, printing)
        return 0
    if dask is not None:
        raise UsageError("--dask is for checkpoints that are published, and not for --score")
    wishes = {"keep": keep, "target": target, "reference": reference, "minimise": minimise}
    score_and_tell = load("curve", "score_and_tell")
    code: int = score_and_tell((base, tuned, alpha, recipe, reading), score, wishes, out, how, printing)
    return code
